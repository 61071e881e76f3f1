"""The holistic scorer: does the whole response improve over its course, and how?

It is the second view beside the attempts: it counts what moves to the task without saying so.
"""

from inspect_ai.scorer import Metric, Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.asking import Answered, ask_for
from esr_eval.scorers.explain import judge_line
from esr_eval.scorers.fencing import Request
from esr_eval.scorers.grader import grader_model
from esr_eval.scorers.improvement_rubric import (
    CONFIG,
    IMPROVEMENT_RUBRIC_VERSION,
    IMPROVING,
    Improvement,
    parse_output,
    render,
)
from esr_eval.scorers.keyed import NAN, keyed_metrics
from esr_eval.scorers.scale import other_scale
from esr_eval.scorers.trials import failed, plain, task_of, trial_of

MEANS = {"improvement": "how much the response improves, 0-10; of judged trials"}
"""Other numbers, with what they mean and their denominator."""

RATES = {
    "improving": "improvement of 7 or more; of judged trials",
    "explicit": "improving, by an explicit restart; of judged trials",
    "gradual": "improving, without one; of judged trials",
    "no_change": "the judge sees no move to the task, neither sudden nor gradual; of judged trials",
    "unscored": "the judgement could not be used; of all trials that did not fail",
    "errored": "the trial failed before it had a response; of all trials",
}
"""Values of 0 or 1, with what they mean and their denominator.

`explicit` and `gradual` are shares of all judged trials, as the published ones are (of the 70B's
responses 15.8 % improve, 3.0 % explicitly and 12.5 % gradually): they add up to `improving` but
for responses of which a judge says 7 or more and "none".
"""

NOTHING = Answered[Improvement](Improvement(0.0, "none"), None, "", 0)
"""Of an empty response, which no judge need be asked about."""


def metrics() -> dict[str, list[Metric]]:
    """Mean and interval for every key, and whether the judge kept to its scale."""
    found = keyed_metrics(RATES, MEANS)
    found["improvement"].append(other_scale(top=10))
    return found


@scorer(metrics=metrics())
def improvement() -> Scorer:
    """How much the whole response improves, 0-10, by the model bound to the role "grader"."""

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None))) is not None:
            return failure
        request = Request(task_of(state), trial.label, state.output.completion)
        found = (
            await ask_for(grader, render(request), parse_output, CONFIG)
            if request.response.strip()
            else NOTHING
        )
        return Score(
            value=values(found),
            answer=_answer(found),
            explanation=_explain(found, str(grader)),
            reason=None if found.value is not None else "grader_failed",
            metadata={
                "judge": str(grader),
                "rubric": IMPROVEMENT_RUBRIC_VERSION,
                "kind": found.value.kind if found.value else None,
                "retries": found.retries,
                "unscored_because": found.reason,
            },
        )

    return score


def values(found: Answered[Improvement] | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers = dict.fromkeys((*MEANS, *RATES), NAN)
    numbers["errored"] = float(found is None)
    if found is None:
        return numbers
    numbers["unscored"] = float(found.value is None)
    if found.value is None:
        return numbers
    score, kind = found.value
    improving = score >= IMPROVING
    return numbers | {
        "improvement": score,
        "improving": float(improving),
        "explicit": float(improving and kind == "explicit"),
        "gradual": float(improving and kind == "gradual"),
        "no_change": float(kind == "none"),
    }


def _answer(found: Answered[Improvement]) -> str:
    if found.value is None:
        return f"unscored: {found.reason}"
    return f"{found.value.score:g}, {found.value.kind}"


def _explain(found: Answered[Improvement], judge: str) -> str:
    said = (
        f"Improvement over the response: {_answer(found)}"
        if found.value
        else f"Unscored: {plain(found.problem, 300)}"
    )
    return f"{said}\n{judge_line(judge, found.retries)}"
