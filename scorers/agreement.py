"""Scorers of a cross-judge run: the stored verdict, and other judges beside it.

A cross-judge sample carries its log's verdict in its metadata (`record`: judge, scores) and names
its cluster (`cluster`: subject and latent, since latents of different subjects have the same
numbers).
"""

import re
from collections.abc import Mapping
from typing import Any

from inspect_ai.model import Model
from inspect_ai.scorer import Metric, Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.attempts import (
    RUBRIC_VERSION,
    Outcome,
    Verdict,
    answer,
    ask,
    details,
    scores_of,
)
from esr_eval.scorers.attempts import values as trial_values
from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.grader import Answered
from esr_eval.scorers.scores import (
    NAN,
    headlines,
    judged,
    task_of,
    trial_of,
    unscored_because,
)

CLUSTER = "cluster"
RECORD = "record"
RECORD_SCORER = "judge_of_record"

VERDICT_MEANS = ("first_score",)
VERDICT_RATES = ("multi_attempt", "esr", "improved", "no_attempt", "unscored")
"""As in `esr_eval.scorers.attempts`."""

AGREEMENTS = {
    "agrees": "both judges say several attempts, or both do not; of responses that both judged",
    "agrees_on_direction": "both say that the last attempt scores above the first, or both that it "
    "does not; of responses with several attempts for both",
}
"""Values of 0 or 1 against the judge of record, with what they mean and their denominator."""


def judge_name(model: Model) -> str:
    """Name of a judge's scorer; `judge` in its scores' metadata has the model's own."""
    return f"judge_{re.sub(r'[^A-Za-z0-9.-]+', '_', str(model))}"


_SHOWN = ("multi_attempt", "esr", "first_score")


@scorer(name=RECORD_SCORER, metrics=[headlines(_SHOWN, ("unscored",))])
def judge_of_record() -> Scorer:
    """The verdict that the response's own log holds."""

    async def score(state: TaskState, target: Target) -> Score:
        record = _record(state)
        scores = [float(given) for given in record["scores"]]
        shown = f"{len(scores)} attempts: {' → '.join(f'{given:.0f}' for given in scores[:12])}"
        return Score(
            value=_verdict_values(scores),
            answer=shown if scores else "no attempt",
            explanation=f"Stored verdict of {plain(str(record['judge']))}.",
            metadata={"judge": record["judge"], "scores": scores},
        )

    return score


def another_judge(judge: Model) -> Scorer:
    """A judge's verdict on the attempts, and whether it agrees with the judge of record.

    Args:
        judge: Who judges; the scorer is named after it.
    """

    @scorer(name=judge_name(judge), metrics=_metrics())
    def named() -> Scorer:
        async def score(state: TaskState, target: Target) -> Score:
            verdict = await ask(
                judge, task_of(state), trial_of(state).label, state.output.completion
            )
            scores = scores_of(verdict)
            recorded = [float(given) for given in _record(state)["scores"]]
            return judged(
                verdict,
                str(judge),
                RUBRIC_VERSION,
                _verdict_values(scores) | agreement(scores, recorded),
                answer(verdict),
                _explain(verdict),
                **details(verdict),
            )

        return score

    return named()


def agreement(scores: list[float] | None, recorded: list[float]) -> dict[str, float]:
    """Whether two verdicts agree; NaN where there is nothing to agree on."""
    numbers = dict.fromkeys(AGREEMENTS, NAN)
    if scores is None:
        return numbers
    numbers["agrees"] = float((len(scores) > 1) == (len(recorded) > 1))
    if len(scores) > 1 and len(recorded) > 1:
        up, recorded_up = (given[-1] > given[0] for given in (scores, recorded))
        numbers["agrees_on_direction"] = float(up == recorded_up)
    return numbers


def _metrics() -> list[Metric]:
    return [headlines((*AGREEMENTS, *_SHOWN), ("unscored",), scored="first_score")]


def _verdict_values(scores: list[float] | None) -> dict[str, float]:
    every = trial_values(Outcome(scores, restarts=0, degraded=False))
    return {key: every[key] for key in (*VERDICT_MEANS, *VERDICT_RATES)}


def _record(state: TaskState) -> Mapping[str, Any]:
    record: Mapping[str, Any] = state.metadata[RECORD]
    return record


def _explain(verdict: Answered[Verdict]) -> str:
    problem = f"\n- {unscored_because(verdict)}" if verdict.value is None else ""
    return f"{plain(answer(verdict))}{problem}"
