"""The two methods of the strength search, chosen by the prior."""

from collections.abc import Mapping
from typing import Any

from esr_eval.calibration.bisection import (
    CHECK_SAMPLES,
    MAX_EMPTY_ROUNDS,
    Bisection,
    Search,
    calibration_prior,
)
from esr_eval.calibration.curve import ENOUGH, CurveSearch
from esr_eval.subjects import CalibrationPrior, Subject


def begin(prior: CalibrationPrior) -> Search:
    """A search by the prior's method that has not begun."""
    return CurveSearch(prior=prior) if prior.method == "curve" else Bisection(prior=prior)


def responses_per_latent(subject: Subject, changes: Mapping[str, Any] | None = None) -> int:
    """Responses that finding one latent's strength takes: the search's, and the check's.

    One that cannot be judged, in bisection a round of these, is repeated and comes on top.
    """
    search = begin(calibration_prior(subject, changes))
    return search.most_rounds * search.responses + CHECK_SAMPLES


def effort_notes(subject: Subject, changes: Mapping[str, Any] | None = None) -> list[str]:
    """What an estimate says of searches that may end before their last response."""
    if calibration_prior(subject, changes).method != "curve":
        return []
    most = responses_per_latent(subject, changes)
    return [
        f"A search by method=curve takes at most {most} responses a latent, check included, and "
        f"fewer where the score is expected within {ENOUGH:g} points of the target before. Of its "
        f"responses more than {MAX_EMPTY_ROUNDS} may be repeated, while most can be judged."
    ]
