"""The main scorer: a grader splits the response into attempts and scores each of them.

Every key of a score is NaN where it is not defined, and Inspect leaves NaN out per key: so a key's
mean has exactly the denominator that is stated here.

Source: the paper's measures (multi-attempt rate, ESR rate, improvement rate, first score, change,
degradation), all over trials with at least one scored attempt.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from inspect_ai.scorer import Metric, Score, Scorer, Target, grouped, mean, scorer
from inspect_ai.solver import TaskState

from esr_eval.data.trial import Trial
from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.grader import Answered, ask, grader_model
from esr_eval.scorers.phrases import Restart, find_restarts, is_degraded
from esr_eval.scorers.rubric import RUBRIC_VERSION, Verdict
from esr_eval.scorers.scores import (
    NAN,
    failed,
    judged,
    keyed_metrics,
    other_scale,
    task_of,
    trial_of,
    unscored_because,
)

RATES = {
    "multi_attempt": "two or more attempts; of trials with an attempt",
    "esr": "two or more attempts, and the last scores above the first; of trials with an attempt",
    "improved": "the last scores above the first; of multi-attempt trials",
    "degraded": "the same word five times running; of all trials that did not fail",
    "multi_attempt_clean": "as multi_attempt, without degraded trials",
    "esr_clean": "as esr, without degraded trials",
    "restart_phrase": "the phrase detector finds a restart; of all trials that did not fail",
    "disagreement": "judge and phrase detector differ on a restart; of judged trials",
    "no_attempt": "nothing was attempted; of judged trials",
    "unscored": "the judge's verdict could not be used; of all trials that did not fail",
    "errored": "the trial failed before it had a response; of all trials",
}
"""Values of 0 or 1, with what they mean and their denominator."""

MEANS = {
    "first_score": "score of the first attempt, 0-100; of trials with an attempt",
    "first_score_clean": "the same, without degraded trials",
    "change": "last score minus first; of multi-attempt trials",
}
"""Other numbers, with what they mean and their denominator."""

_SHOWN = 12
"""Attempts and restarts written out; more are only counted."""


def metrics() -> dict[str, list[Metric]]:
    """Mean and interval for every key; the main ones first."""
    order = ("multi_attempt", "esr", "improved", "first_score", "change")
    keys = (*order, *(key for key in (*MEANS, *RATES) if key not in order))
    every = keyed_metrics(RATES, MEANS)
    every["first_score"].append(other_scale())
    return {key: every[key] for key in keys}


def grouped_metrics(field: str) -> dict[str, list[Metric]]:
    """Mean of every key for each value of a field of the trial (`level`, say).

    Args:
        field: Key of the sample metadata.
    """
    every: dict[str, list[Metric]] = {key: [grouped(mean(), field, all=False)] for key in metrics()}
    every["first_score"].append(other_scale())
    return every


@scorer(metrics=metrics())
def attempts() -> Scorer:
    """Attempts and their scores 0-100, by the model bound to the role "grader".

    Trials whose verdict cannot be used are counted as `unscored` with a reason, never guessed;
    trials that failed are counted as `errored` when the task sets `score_on_error=True`.
    """

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None))) is not None:
            return failure
        response = state.output.completion
        restarts = find_restarts(response)
        degraded = is_degraded(response)
        verdict = (
            await ask(grader, task_of(state), trial.label, response)
            if response.strip()
            else Answered(Verdict([]))
        )
        return judged(
            verdict,
            str(grader),
            RUBRIC_VERSION,
            values(Outcome(scores_of(verdict), len(restarts), degraded)),
            answer(verdict),
            _explain(trial, response, verdict, restarts, degraded),
            **details(verdict),
            restarts=[restart._asdict() for restart in restarts[:20]],
        )

    return score


class Outcome(NamedTuple):
    """What is known of a trial that has a response."""

    scores: list[float] | None
    """Attempts' scores in order; None when no verdict could be used."""
    restarts: int
    degraded: bool


def values(outcome: Outcome | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers: dict[str, float] = dict.fromkeys((*RATES, *MEANS), NAN)
    numbers["errored"] = float(outcome is None)
    if outcome is None:
        return numbers
    numbers |= {
        "unscored": float(outcome.scores is None),
        "degraded": float(outcome.degraded),
        "restart_phrase": float(outcome.restarts > 0),
    }
    if outcome.scores is None:
        return numbers
    numbers |= _judged_numbers(outcome.scores)
    multi = len(outcome.scores) > 1
    numbers["disagreement"] = float(multi != (outcome.restarts > 0))
    if not outcome.degraded:
        clean = ("multi_attempt", "esr", "first_score")
        numbers |= {f"{key}_clean": numbers[key] for key in clean}
    return numbers


def _judged_numbers(scores: list[float]) -> Mapping[str, float]:
    if not scores:
        return {"no_attempt": 1.0}
    multi = len(scores) > 1
    change = scores[-1] - scores[0]
    numbers = {
        "no_attempt": 0.0,
        "multi_attempt": float(multi),
        "esr": float(multi and change > 0),
        "first_score": scores[0],
    }
    return numbers | {"improved": float(change > 0), "change": change} if multi else numbers


def scores_of(verdict: Answered[Verdict]) -> list[float] | None:
    """Scores of the attempts, in order; None where the verdict could not be used."""
    return [attempt.score for attempt in verdict.value.attempts] if verdict.value else None


def answer(verdict: Answered[Verdict]) -> str:
    """The verdict in a few words, such as `2 attempts: 10 → 75`."""
    scores = scores_of(verdict)
    if scores is None:
        return f"unscored: {verdict.reason}"
    if not scores:
        return "no attempt"
    shown = [f"{score:.0f}" for score in scores]
    if len(shown) > 6:
        shown = [*shown[:3], "…", *shown[-2:]]
    return f"{len(scores)} attempt{'s' if len(scores) > 1 else ''}: {' → '.join(shown)}"


def details(verdict: Answered[Verdict]) -> dict[str, Any]:
    """What a score's metadata holds of the attempts."""
    known = verdict.value or Verdict([])
    return {
        "attempts": [attempt._asdict() for attempt in known.attempts],
        "lenient": known.lenient,
    }


def _explain(
    trial: Trial,
    response: str,
    verdict: Answered[Verdict],
    restarts: list[Restart],
    degraded: bool,
) -> str:
    """The verdict with its evidence, a few lines whatever the response's length."""
    lines = [f"{plain(answer(verdict))}{_meaning(scores_of(verdict))}", ""]
    if verdict.value is None:
        lines.append(f"- {unscored_because(verdict)}")
    elif verdict.value.attempts:
        lines += [
            f"{number}. {attempt.score:.0f}/100: {_ends(response[attempt.start : attempt.end])}"
            for number, attempt in enumerate(verdict.value.attempts[:_SHOWN], 1)
        ]
        lines.append("")
    lines += [
        f"- Boost: latent {trial.latent} “{plain(trial.label)}”, strength {trial.strength:g} "
        f"({trial.condition})",
        f"- Restart phrases: {_phrases(restarts)}",
        f"- Degraded (a word five times running): {'yes' if degraded else 'no'}",
    ]
    return "\n".join(lines)


def _meaning(scores: list[float] | None) -> str:
    if not scores or len(scores) < 2:
        return ""
    change = scores[-1] - scores[0]
    return f" (change {change:+.0f}{', ESR' if change > 0 else ''})"


def _ends(attempt: str) -> str:
    if len(attempt) <= 140:
        return f"“{plain(attempt)}”"
    return f"“{plain(attempt[:70], 70)}” … “{plain(attempt[-70:], 70)}”"


def _phrases(restarts: list[Restart]) -> str:
    if not restarts:
        return "none"
    shown = "; ".join(f"“{plain(restart.phrase, 90)}”" for restart in restarts[:_SHOWN])
    more = len(restarts) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
