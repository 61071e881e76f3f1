"""Which stretches of a response are off topic, correct it, or answer: a scorer for statistics."""

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.asking import QUOTES_REMINDER, Answered, ask_for
from esr_eval.scorers.explain import judge_line
from esr_eval.scorers.fencing import Request
from esr_eval.scorers.grader import grader_model
from esr_eval.scorers.keyed import NAN, keyed_metrics
from esr_eval.scorers.regions_rubric import (
    CONFIG,
    REGIONS_RUBRIC_VERSION,
    Region,
    parse_output,
    render,
)
from esr_eval.scorers.trials import failed, plain, task_of, trial_of

MEANS = {
    "off_topic": "share of the response's characters that are off topic; of judged trials",
    "regions": "number of regions; of judged trials",
}
"""Other numbers, with what they mean and their denominator."""

RATES = {
    "has_correction": "a region says that the model corrects itself; of judged trials",
    "unscored": "the regions could not be used; of all trials that did not fail",
    "errored": "the trial failed before it had a response; of all trials",
}
"""Values of 0 or 1, with what they mean and their denominator."""

_SHOWN = 12


@scorer(metrics=keyed_metrics(RATES, MEANS))
def regions() -> Scorer:
    """Off-topic, correction and on-topic regions, by the model bound to the role "grader".

    They lie in the score's metadata, as `regions`: kind, start and end of each in characters of
    the response, one after the other without gaps; a response without a word has none.
    """

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None, ""))) is not None:
            return failure
        response = state.output.completion

        def parse(output: ModelOutput) -> list[Region]:
            return parse_output(output, response)

        request = Request(task_of(state), trial.label, response)
        found: Answered[list[Region]] = (
            await ask_for(grader, render(request), parse, CONFIG, reminder=QUOTES_REMINDER)
            if any(char.isalnum() for char in response)
            else Answered([], None, "", 0)
        )
        return Score(
            value=values(found, response),
            answer=_answer(found),
            explanation=_explain(found, response, str(grader)),
            reason=None if found.value is not None else "grader_failed",
            metadata={
                "judge": str(grader),
                "rubric": REGIONS_RUBRIC_VERSION,
                "regions": [region._asdict() for region in found.value or []],
                "retries": found.retries,
                "unscored_because": found.reason,
            },
        )

    return score


def values(found: Answered[list[Region]] | None, response: str) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers = dict.fromkeys((*MEANS, *RATES), NAN)
    numbers["errored"] = float(found is None)
    if found is None:
        return numbers
    numbers["unscored"] = float(found.value is None)
    if found.value is None:
        return numbers
    off = sum(one.end - one.start for one in found.value if one.kind == "off_topic")
    return numbers | {
        # Of an empty response there is no share.
        "off_topic": off / len(response) if found.value else NAN,
        "regions": float(len(found.value)),
        "has_correction": float(any(one.kind == "correction" for one in found.value)),
    }


def _answer(found: Answered[list[Region]]) -> str:
    if found.value is None:
        return f"unscored: {found.reason}"
    kinds = [one.kind for one in found.value]
    shown = kinds if len(kinds) <= 6 else [*kinds[:3], "…", *kinds[-2:]]
    return " → ".join(shown) or "no text"


def _explain(found: Answered[list[Region]], response: str, judge: str) -> str:
    lines = [_answer(found), ""]
    if found.value is None:
        lines.append(f"- Unscored: {plain(found.problem, 300)}")
    lines += [
        f"{number}. {one.kind.replace('_', ' ')}, characters {one.start} to {one.end}: "
        f"“{plain(response[one.start : one.end], 120)}”"
        for number, one in enumerate((found.value or [])[:_SHOWN], 1)
    ]
    return "\n".join([*lines, judge_line(judge, found.retries)])
