"""The strength at which the mean first-attempt score is the target, from a curve of scores.

Bisection asks only on which side of the target a score lies. Here first scores fall with the
strength along a logistic curve, and a posterior over its threshold (the strength searched for), its
slope and its floor is kept on a grid. A score counts by the quasi-likelihood of a share
(Wedderburn 1974): nothing but mean and variance is assumed, so scores near 20 and near 85 serve as
well as scores that spread. Slopes are relative to the threshold, which makes one prior of the slope
serve every model. It is fixed: what one latent gets must not depend on the others of its run.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, softmax
from scipy.stats import norm

from esr_eval.calibration.bisection import CHECK_SAMPLES, Bisection, Search, calibration_prior
from esr_eval.subjects import CalibrationPrior, Subject

SHARE = 0.4
"""Most responses of a search, of those that the paper's method takes under the same prior."""

ENOUGH = 6.0
"""Expected error of the score, in points, at which a search ends before that: less than the paper's
50 responses leave."""

SCORE_WEIGHT = 2.4
"""What one score counts, in answers that are all right or all wrong: their variance over that of
scores, whose standard deviation is near 28 at a mean of 30."""

SLOPES = np.array([1.5, 2.2, 3.3, 5, 7.5, 11, 16])
"""Of the logit of the score, over a change of the strength by the threshold."""
SLOPE_MEDIAN, SLOPE_SPREAD = 5.5, 0.6
"""Of the log-normal prior of the slope; the shipped strengths' rounds have one of some 4.5 to 6."""

FLOORS = {0.0: 0.7, 1 / 3: 0.2, 2 / 3: 0.1}
"""Scores of answers that are all about the latent, in targets, and how probable they are."""
CEILING = 0.88
"""Where the curve begins, of the way from the target to 100."""

WIDE = 0.1
"""Probability that the subject's prior is wrong; the threshold then is log-normal around it."""

GRID = 200
"""Thresholds of the grid."""
TESTED = np.arange(0, GRID, 2)
"""Those of them that may be tested."""

NEAR = (1 / 3, 0.3)
"""Strengths are tested where the score is expected near the target: so far below it, of the target,
to so far above it, of what is left to 100. Further off, a curve that is not logistic misleads."""

BAD, GOOD = 0.12, 0.85
"""The two answers that a test is expected to give, as shares of 100."""

Array = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """The curves under consideration, of all thresholds for each slope and floor.

    Attributes:
        strengths: The thresholds, which are the strengths that may be tested, too.
        share: Expected share of 100 of each curve (columns) at each strength (rows).
        log_share: Its logarithm.
        log_rest: That of what is left to 100.
        log_prior: Of each curve.
        log_threshold: Of each curve.
    """

    strengths: Array
    share: Array
    log_share: Array
    log_rest: Array
    log_prior: Array
    log_threshold: Array

    def evidence(self, at: npt.NDArray[np.int64] | int, scores: float, answers: float) -> Array:
        """Log-likelihood of each curve for answers at a row or rows.

        Args:
            at: Row or rows.
            scores: Sum of the answers' shares of 100.
            answers: How many these are.
        """
        log = scores * self.log_share[at] + (answers - scores) * self.log_rest[at]
        return np.asarray(SCORE_WEIGHT * log, dtype=np.float64)


@lru_cache(maxsize=8)
def grid_of(prior: CalibrationPrior) -> Grid:
    """The grid of a prior: dense where the threshold is expected, and wide."""
    fine = np.geomspace(max(prior.lower, prior.upper / 1000), prior.upper, 5000)
    # Densities over the logarithm, which the fine grid is even in.
    expected = fine * norm.pdf(fine, prior.prior_mean, prior.prior_std)
    wide = norm.pdf(np.log(fine / prior.prior_mean))
    expected, wide = expected / expected.sum(), wide / wide.sum()
    dense = np.cumsum(0.6 * expected + 0.2 * wide + 0.2 / len(fine))
    cells = np.interp(np.arange(GRID + 1) / GRID, dense, fine)
    strengths = np.interp((np.arange(GRID) + 0.5) / GRID, dense, fine)
    mass = np.cumsum((1 - WIDE) * expected + WIDE * wide)
    threshold = np.maximum(np.diff(np.interp(cells, fine, mass)), 1e-12)
    slopes = norm.pdf(np.log(SLOPES / SLOPE_MEDIAN) / SLOPE_SPREAD)
    target = prior.target / 100
    top = target + CEILING * (1 - target)
    ratio = strengths[:, None] / strengths
    shares, masses = [], []
    for floor, probable in FLOORS.items():
        low = floor * target
        at_target = logit((target - low) / (top - low))
        for slope, likely in zip(SLOPES, slopes, strict=True):
            shares.append(low + (top - low) * expit(at_target - slope * (ratio - 1)))
            masses.append(threshold * probable * likely)
    share = np.clip(np.concatenate(shares, axis=1), 0.005, 0.995)
    return Grid(
        strengths=strengths,
        share=share,
        log_share=np.log(share),
        log_rest=np.log1p(-share),
        log_prior=np.log(np.concatenate(masses)),
        log_threshold=np.tile(np.log(strengths), len(shares)),
    )


@lru_cache(maxsize=8)
def _foreseen(prior: CalibrationPrior) -> tuple[Array, Array, Array]:
    """Shares at the strengths that may be tested; likelihoods of a bad and of a good answer."""
    grid = grid_of(prior)
    bad, good = (np.exp(grid.evidence(TESTED, answer, 1)) for answer in (BAD, GOOD))
    return grid.share[TESTED], bad, good


class CurveSearch(Search):
    """The search for one strength by the curve of its scores."""

    method = "curve"

    @property
    def responses(self) -> int:
        """One: the next strength depends on it, and latents share batches."""
        return 1

    @property
    def most_rounds(self) -> int:
        """A share of the responses that bisection takes."""
        return max(1, round(SHARE * self.prior.rounds * self.prior.samples_per_round))

    @property
    def finished(self) -> bool:
        """Whether enough was judged, or the score is known well enough before."""
        return self.counted >= self.most_rounds or self.error <= ENOUGH

    @property
    def failed(self) -> bool:
        """Whether too little of what was asked could be judged to go on."""
        return super().failed and self.empty > self.counted

    @cached_property
    def log_posterior(self) -> Array:
        """Of each curve of the grid, but for a constant."""
        grid = grid_of(self.prior)
        log = grid.log_prior.copy()
        for tested in self.rounds:
            row = int(np.argmin(np.abs(grid.strengths - tested.strength)))
            log += grid.evidence(row, sum(tested.scores) / 100, len(tested.scores))
        return log

    @cached_property
    def expected(self) -> Array:
        """Expected share of 100 at each strength of the grid; it falls."""
        return np.asarray(grid_of(self.prior).share @ softmax(self.log_posterior), np.float64)

    @property
    def next_strength(self) -> float:
        """Where an answer is expected to narrow the posterior of the threshold most.

        That is, where it leaves the least variance of the threshold's logarithm.
        """
        grid, posterior = grid_of(self.prior), softmax(self.log_posterior)
        shares, bad, good = _foreseen(self.prior)
        share, target = shares @ posterior, self.prior.target / 100
        near = (share >= target * (1 - NEAR[0])) & (share <= target + (1 - target) * NEAR[1])
        if not near.any():
            near = np.arange(len(share)) == np.argmin(np.abs(share - target))
        moments = np.stack([posterior * grid.log_threshold**power for power in range(3)], axis=1)
        is_good = np.clip((share - BAD) / (GOOD - BAD), 0.02, 0.98)
        left = np.zeros(len(share))
        for likelihood, probable in ((bad, 1 - is_good), (good, is_good)):
            mass, mean, square = (likelihood @ moments).T
            left += probable * (square / mass - (mean / mass) ** 2)
        return float(grid.strengths[TESTED[np.argmin(np.where(near, left, np.inf))]])

    @property
    def strength(self) -> float:
        """Where the expected score is the target."""
        grid = grid_of(self.prior)
        return float(np.interp(self.prior.target / 100, self.expected[::-1], grid.strengths[::-1]))

    @cached_property
    def error(self) -> float:
        """Root mean square distance of the score at `strength` from the target, by the posterior.

        In points; taken at the strength of the grid that is next to it.
        """
        grid = grid_of(self.prior)
        row = int(np.argmin(np.abs(grid.strengths - self.strength)))
        off = 100 * grid.share[row] - self.prior.target
        return float(np.sqrt(off**2 @ softmax(self.log_posterior)))

    def quantile(self, q: float) -> float:
        """Posterior quantile of the threshold."""
        grid = grid_of(self.prior)
        mass = softmax(self.log_posterior).reshape(-1, GRID).sum(axis=0)
        return float(np.interp(q, np.cumsum(mass), grid.strengths))


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
        f"fewer where the score is expected within {ENOUGH:g} points of the target before."
    ]
