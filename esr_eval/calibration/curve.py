"""The strength at which the mean first-attempt score is the target, from a curve of scores.

Bisection asks only on which side of the target a score lies. Here first scores fall with the
strength along a logistic curve, and a posterior over its threshold (the strength searched for), its
slope and its floor is kept on a grid. A score counts by the quasi-likelihood of a share
(Wedderburn 1974): nothing but mean and variance is assumed, so scores near 20 and near 85 serve as
well as scores that spread. Slopes are relative to the threshold, which makes one prior of the slope
serve every model. It is fixed: what one latent gets must not depend on the others of its run.
"""

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, softmax
from scipy.stats import norm

from esr_eval.calibration.bisection import Search
from esr_eval.subjects import CalibrationPrior

SHARE_OF_RESPONSES = 0.4
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

Array = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """The curves under consideration, of all thresholds for each slope and floor.

    Attributes:
        strengths: The thresholds, which are the strengths that may be tested, too.
        share: Expected share of 100 of each curve (columns) at each strength (rows).
        off: Square of its distance from the target, in points.
        log_share: Its logarithm.
        log_rest: That of what is left to 100.
        log_prior: Of each curve.
    """

    strengths: Array
    share: Array
    off: Array
    log_share: Array
    log_rest: Array
    log_prior: Array


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
        off=(100 * share - prior.target) ** 2,
        log_share=np.log(share),
        log_rest=np.log1p(-share),
        log_prior=np.log(np.concatenate(masses)),
    )


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
        return max(1, round(SHARE_OF_RESPONSES * self.prior.rounds * self.prior.samples_per_round))

    @property
    def finished(self) -> bool:
        """Whether enough was judged, or the score is known well enough before."""
        return self.counted >= self.most_rounds or self.error <= ENOUGH

    @property
    def failed(self) -> bool:
        """Whether too little of what was asked could be judged to go on."""
        return super().failed and self.empty > self.counted

    @cached_property
    def posterior(self) -> Array:
        """Probability of each curve of the grid."""
        grid = grid_of(self.prior)
        log = grid.log_prior.copy()
        for tested in self.rounds:
            row = int(np.argmin(np.abs(grid.strengths - tested.strength)))
            share = sum(tested.scores) / 100
            rest = len(tested.scores) - share
            log += SCORE_WEIGHT * (share * grid.log_share[row] + rest * grid.log_rest[row])
        return np.asarray(softmax(log), dtype=np.float64)

    @property
    def next_strength(self) -> float:
        """Where the expected score is nearest to the target.

        A strength from which more is expected to be learnt lies further off, where a curve that is
        not logistic misleads; simulated searches end no nearer to the target by it.
        """
        grid = grid_of(self.prior)
        expected = grid.share @ self.posterior
        return float(grid.strengths[np.argmin(np.abs(expected - self.prior.target / 100))])

    @cached_property
    def _off(self) -> Array:
        """Expected square of the score's distance from the target, at each strength."""
        return np.asarray(grid_of(self.prior).off @ self.posterior, dtype=np.float64)

    @property
    def strength(self) -> float:
        """Where the score is expected to err least."""
        return float(grid_of(self.prior).strengths[np.argmin(self._off)])

    @property
    def error(self) -> float:
        """Expected (root mean square) distance of the score at `strength` from the target."""
        return float(np.sqrt(self._off.min()))

    def quantile(self, q: float) -> float:
        """Posterior quantile of the threshold."""
        grid = grid_of(self.prior)
        mass = self.posterior.reshape(-1, GRID).sum(axis=0)
        return float(np.interp(q, np.cumsum(mass), grid.strengths))
