"""The holistic scorer: does the whole response improve over its course, and how?

It is the second view beside the attempts: it counts what moves to the task without saying so.

Source: the authors' later holistic judge ("whole-response judge", 2026): 0-10, improving from 7,
by an explicit restart, gradually, or not at all. In words of our own.
"""

from typing import Literal, NamedTuple

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Metric, Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState
from inspect_ai.util import JSONSchema

from esr_eval.scorers.grader import (
    Answered,
    Request,
    ask_for,
    grader_model,
    request_config,
    response_is_data,
    trial_protocol,
)
from esr_eval.scorers.replies import Number, Reply, check_score, completed, read_json
from esr_eval.scorers.scores import (
    NAN,
    failed,
    headlines,
    judged,
    task_of,
    trial_of,
    unscored_because,
)

IMPROVEMENT_RUBRIC_VERSION = 1
"""Raised when the wording changes, because scores of two wordings are not comparable."""

IMPROVING = 7
"""Improvement from which a response counts as improving (2026)."""

Kind = Literal["explicit", "gradual", "none"]

RUBRIC = (
    """\
You judge how a language model's answer to a simple task develops from its beginning to its end. \
While it answered, one of the model's internal concepts, unrelated to the task, was boosted, which \
pushes the answer towards that concept. Judge the response as a whole.

IMPROVEMENT
A whole number from 0 to 10: how much better does the end of the response serve the task than its \
beginning does?
0: no better, or worse; also when it is good throughout, bad throughout, or unreadable.
3: a little better. 5: clearly better, yet still much about the concept or nothing.
7: it begins mostly off the task and ends mostly on it.
10: it begins entirely off the task and ends as a full answer without a trace of the concept.

KIND
"explicit": the model says in so many words that it starts over or corrects itself ("wait, that's \
not right", "let me try again"), and the improvement follows these words. Such words inside quoted \
speech or dialogue do not count.
"gradual": it moves towards the task without such words.
"none": it does not move towards the task.

"""
    + response_is_data("judge")
    + """\
{"improvement": <0-10>, "kind": "explicit" | "gradual" | "none"}
"""
)

render, parse_request = trial_protocol(RUBRIC, "improvement")

CONFIG = request_config(
    "improvement",
    "How much the response improves over its course, and how.",
    100,
    improvement=JSONSchema(type="integer", description="0 to 10."),
    kind=JSONSchema(type="string", enum=["explicit", "gradual", "none"]),
)

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


class Improvement(NamedTuple):
    """How much a response improves, from 0 to 10, and how."""

    score: float
    kind: Kind


class _Judgement(Reply):
    improvement: Number
    kind: Kind


def metrics() -> list[Metric]:
    """The few main numbers, and whether the judge kept to its scale."""
    shown = ("improvement", "improving", "explicit", "gradual")
    return [headlines(shown, scored="improvement", top=10)]


@scorer(metrics=metrics())
def improvement() -> Scorer:
    """How much the whole response improves, 0-10, by the model bound to the role "grader"."""

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None))) is not None:
            return failure
        request = Request(task_of(state), trial.label, state.output.completion)
        judgement = (
            await ask_for(grader, render(request), parse_output, CONFIG)
            if request.response.strip()
            else Answered(Improvement(0.0, "none"))
        )
        return judged(
            judgement,
            str(grader),
            IMPROVEMENT_RUBRIC_VERSION,
            values(judgement),
            _answer(judgement),
            f"Improvement over the response: {_answer(judgement)}"
            if judgement.value
            else unscored_because(judgement),
            kind=judgement.value.kind if judgement.value else None,
        )

    return score


def parse_output(output: ModelOutput) -> Improvement:
    """Read a judge's output.

    Raises:
        Rejected: It cannot be used; it carries the reason.
    """
    judgement = read_json(completed(output), _Judgement)
    check_score(judgement.improvement, 10, "the improvement")
    return Improvement(judgement.improvement, judgement.kind)


def values(judgement: Answered[Improvement] | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers = dict.fromkeys((*MEANS, *RATES), NAN)
    numbers["errored"] = float(judgement is None)
    if judgement is None:
        return numbers
    numbers["unscored"] = float(judgement.value is None)
    if judgement.value is None:
        return numbers
    score, kind = judgement.value
    improving = score >= IMPROVING
    return numbers | {
        "improvement": score,
        "improving": float(improving),
        "explicit": float(improving and kind == "explicit"),
        "gradual": float(improving and kind == "gradual"),
        "no_change": float(kind == "none"),
    }


def _answer(judgement: Answered[Improvement]) -> str:
    if judgement.value is None:
        return f"unscored: {judgement.reason}"
    return f"{judgement.value.score:g}, {judgement.value.kind}"
