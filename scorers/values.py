"""The numbers of one trial, and the metrics that are made of them.

Every key is NaN where it is not defined, and Inspect leaves NaN out per key: so a key's mean has
exactly the denominator that is stated here.

Source: the paper's measures (multi-attempt rate, ESR rate, improvement rate, first score, change,
degradation), all over trials with at least one scored attempt.
"""

from collections.abc import Mapping
from typing import NamedTuple

from inspect_ai.scorer import Metric, grouped, mean

from esr_eval.scorers.keyed import NAN, keyed_metrics
from esr_eval.scorers.scale import other_scale

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


def metrics() -> dict[str, list[Metric]]:
    """Mean and interval for every key; the main ones first."""
    order = ("multi_attempt", "esr", "improved", "first_score", "change")
    keys = (*order, *(key for key in (*MEANS, *RATES) if key not in order))
    found = keyed_metrics(RATES, MEANS)
    found["first_score"].append(other_scale())
    return {key: found[key] for key in keys}


def grouped_metrics(field: str) -> dict[str, list[Metric]]:
    """Mean of every key for each value of a field of the trial (`level`, say).

    Args:
        field: Key of the sample metadata.
    """
    found: dict[str, list[Metric]] = {key: [grouped(mean(), field, all=False)] for key in metrics()}
    found["first_score"].append(other_scale())
    return found


class Outcome(NamedTuple):
    """What is known of a trial that has a response."""

    scores: list[float] | None
    """Attempts' scores in order; None when no verdict could be used."""
    restarts: int
    degraded: bool


def values(outcome: Outcome | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    found: dict[str, float] = dict.fromkeys((*RATES, *MEANS), NAN)
    found["errored"] = float(outcome is None)
    if outcome is None:
        return found
    found |= {
        "unscored": float(outcome.scores is None),
        "degraded": float(outcome.degraded),
        "restart_phrase": float(outcome.restarts > 0),
    }
    if outcome.scores is None:
        return found
    found |= _judged(outcome.scores)
    multi = len(outcome.scores) > 1
    found["disagreement"] = float(multi != (outcome.restarts > 0))
    if not outcome.degraded:
        clean = ("multi_attempt", "esr", "first_score")
        found |= {f"{key}_clean": found[key] for key in clean}
    return found


def _judged(scores: list[float]) -> Mapping[str, float]:
    if not scores:
        return {"no_attempt": 1.0}
    multi = len(scores) > 1
    change = scores[-1] - scores[0]
    found = {
        "no_attempt": 0.0,
        "multi_attempt": float(multi),
        "esr": float(multi and change > 0),
        "first_score": scores[0],
    }
    return found | {"improved": float(change > 0), "change": change} if multi else found
