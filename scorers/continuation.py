"""The scorer of what a model adds to a beginning that it was given, judged without it.

Where the same beginning is given under several conditions, what differs is the continuation alone.
It is asked about in the words of `attempts`, and its last attempt's score is the recovered score.
"""

from inspect_ai.model import ChatMessageAssistant
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import RUBRIC_VERSION, Verdict, answer, ask, details, scores_of
from esr_eval.scorers.grader import Answered, grader_model
from esr_eval.scorers.scores import (
    NAN,
    failed,
    headlines,
    judged,
    task_of,
    trial_of,
    unscored_because,
)

RECOVERED = "recovered_score"
MEANS = {
    RECOVERED: "score of the last attempt in what the model itself adds, 0-100; 0 where it "
    "attempts nothing; of judged trials"
}
"""Other numbers, with what they mean and their denominator."""
RATES = {
    "no_attempt": "nothing was attempted in what the model adds; of judged trials",
    "unscored": "the judge's verdict could not be used; of all trials that did not fail",
    "errored": "the trial failed before it had a response; of all trials",
}
"""Values of 0 or 1, with what they mean and their denominator."""


@scorer(metrics=[headlines((RECOVERED, "no_attempt"), scored=RECOVERED)])
def continuation() -> Scorer:
    """Score of what the model adds to a given beginning, 0-100, by the role "grader"."""

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None))) is not None:
            return failure
        added = added_by_model(state)
        verdict = (
            await ask(grader, task_of(state), trial.label, added)
            if added.strip()
            else Answered(Verdict([]))
        )
        numbers = values(verdict)
        said = f"continuation: {answer(verdict)}"
        return judged(
            verdict,
            str(grader),
            RUBRIC_VERSION,
            numbers,
            said,
            f"Of {len(added)} characters that the model added, judged alone: {answer(verdict)}"
            if verdict.value
            else unscored_because(verdict),
            **details(verdict),
        )

    return score


def added_by_model(state: TaskState) -> str:
    """The response without the beginning that the model was given.

    Raises:
        EsrError: It was given none.
    """
    messages = state.input if isinstance(state.input, list) else []
    if not messages or not isinstance(messages[-1], ChatMessageAssistant):
        raise EsrError(
            f"Sample {state.sample_id} was given no beginning, so there is no continuation to "
            "score: name a log of esr_eval/prefill_control."
        )
    return state.output.completion.removeprefix(messages[-1].text)


def values(verdict: Answered[Verdict] | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers = dict.fromkeys((*MEANS, *RATES), NAN)
    numbers["errored"] = float(verdict is None)
    if verdict is None:
        return numbers
    scores = scores_of(verdict)
    numbers["unscored"] = float(scores is None)
    if scores is None:
        return numbers
    # To attempt nothing is no recovery; left out, it would flatter whoever falls silent.
    return numbers | {"no_attempt": float(not scores), RECOVERED: scores[-1] if scores else 0.0}
