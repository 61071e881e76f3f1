"""How many trials it takes to see that rates or scores changed, when trials cluster by latent."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student
from statsmodels.stats.power import normal_power_het, normal_sample_size_one_tail

from esr_eval.errors import EsrError
from esr_eval.stats.rates import Floats

PUBLISHED_LATENTS = 500
PUBLISHED_TRIALS = 4876
"""Of each condition of the paper's ablation of the 70B: 4,877 with, 4,875 without it."""
ASSUMED_ICC = 0.1
ASSUMED_LATENT_CORRELATION = 0.8
"""What trials of cluster-crossover designs are planned with (Hooper & Bourke 2015)."""


@dataclass(frozen=True)
class Design:
    """Two conditions of equally many trials, whose rates are compared.

    Attributes:
        base: Rate of the first condition, 0 to 1.
        reduced: Rate of the second.
        icc: Intraclass correlation: of two trials of one latent in one condition.
        trials_per_latent: In each condition.
        paired: Whether the second condition replays the first's trials; else it has latents of
            its own.
        latent_correlation: When paired, how alike the conditions rank the latents: 1 when what
            is changed acts on all latents alike, less when on some more than on others.
        pair_correlation: When paired, correlation of the two trials of a pair; None when the
            same task and seed make them no more alike than any two trials of their latent.
    """

    base: float
    reduced: float
    icc: float = ASSUMED_ICC
    trials_per_latent: float = 10
    paired: bool = True
    latent_correlation: float = ASSUMED_LATENT_CORRELATION
    pair_correlation: float | None = None

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if not (0 < self.base < 1 and 0 < self.reduced < 1):
            raise EsrError("Both rates must lie between 0 and 100 %, and be neither.")
        if self.base == self.reduced:
            raise EsrError("The two rates are the same: there is nothing to see.")
        if not 0 <= self.icc < 1:
            raise EsrError(f"The intraclass correlation is at least 0 and below 1, not {self.icc}.")
        if not self.trials_per_latent >= 1:
            raise EsrError("A latent needs at least one trial.")
        if not 0 <= self.latent_correlation <= 1:
            raise EsrError("The latents' correlation between conditions lies between 0 and 1.")
        if not -1 < (self.pair_correlation or 0.0) < 1:
            raise EsrError("The correlation of a pair's trials lies between -1 and 1.")


def design_effect(design: Design) -> float:
    """Variance of the difference, over that of as many independent trials."""
    spread = _deviation(design, design.base, design.reduced)
    independent = replace(design, icc=0.0, paired=False)
    return spread**2 / _deviation(independent, design.base, design.reduced) ** 2


def power(design: Design, trials: float, alpha: float = 0.05) -> float:
    """Chance that a two-sided test sees the difference.

    Args:
        design: What is compared.
        trials: Trials in each condition.
        alpha: Level of the test.
    """
    null, alternative = _deviations(design)
    found = normal_power_het(
        design.base - design.reduced, trials, alpha, std_null=null, std_alternative=alternative
    )
    return float(found)


def latents_needed(design: Design, chance: float = 0.8, alpha: float = 0.05) -> int:
    """Latents in each condition with which a two-sided test has that chance of seeing it.

    The normal approximation is a little hopeful below about 30 latents.

    Args:
        design: What is compared.
        chance: The power that is wanted.
        alpha: Level of the test.
    """
    if not 0 < alpha < chance < 1:
        raise EsrError("It takes 0 < alpha < power < 1.")
    null, alternative = _deviations(design)
    trials = normal_sample_size_one_tail(
        abs(design.base - design.reduced),
        chance,
        alpha / 2,
        std_null=null,
        std_alternative=alternative,
    )
    return max(2, math.ceil(float(trials) / design.trials_per_latent))


def _deviations(design: Design) -> tuple[float, float]:
    """Of one trial's difference: without an effect, and with it."""
    pooled = (design.base + design.reduced) / 2
    return (
        _deviation(design, pooled, pooled),
        _deviation(design, design.base, design.reduced),
    )


def _deviation(design: Design, first: float, second: float) -> float:
    """Standard deviation whose square over the trials is the variance of the difference.

    Of m trials of a latent, each varies and is alike m - 1 others by the intraclass correlation:
    the usual 1 + (m - 1) ICC for conditions with latents of their own. A replayed latent brings
    what the conditions have in common to both, and it drops out of the difference (as in cluster
    crossover trials: Giraudeau, Ravaud & Donner 2008; Hooper & Bourke 2015).
    """
    total = first * (1 - first) + second * (1 - second)
    others = (design.trials_per_latent - 1) * design.icc
    if not design.paired:
        return math.sqrt(total * (1 + others))
    product = 2 * math.sqrt(first * (1 - first) * second * (1 - second))
    alike = design.pair_correlation
    if alike is None:
        alike = design.icc * design.latent_correlation
    return math.sqrt(
        total - alike * product + others * (total - design.latent_correlation * product)
    )


def least_change(
    design: Design, latents: int, rise: bool = False, chance: float = 0.8, alpha: float = 0.05
) -> float | None:
    """The rate nearest to the base that so many latents tell from it.

    The normal approximation is a little hopeful below about 30 latents.

    Args:
        design: Base rate and clustering; its reduced rate has no part in it.
        latents: In each condition.
        rise: Whether the rate rises; else it falls.
        chance: The power that is wanted.
        alpha: Level of the test.

    Returns:
        None where no change in that direction is seen with that chance.
    """
    trials = latents * design.trials_per_latent
    nothing = 1e-6

    def short(rate: float) -> float:
        return power(replace(design, reduced=rate), trials, alpha) - chance

    # A rate of 0 (or 1) itself has no spread, and so no power of its own.
    farthest = 1 - nothing if rise else nothing
    nearest = design.base + (nothing if rise else -nothing)
    if not nothing < nearest < 1 - nothing or short(farthest) < 0:
        return None
    return float(brentq(short, nearest, farthest, xtol=1e-5))


@dataclass(frozen=True)
class PairedScores:
    """Scores of the same trials under two conditions, of which the mean difference is tested.

    Attributes:
        deviation: Standard deviation of a pair's difference.
        icc: Intraclass correlation: of the differences of two trials of one latent.
        trials_per_latent: Pairs for each latent.
    """

    deviation: float
    icc: float = ASSUMED_ICC
    trials_per_latent: float = 10

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if not 0 < self.deviation < math.inf:
            raise EsrError("The differences of pairs need a standard deviation above 0.")
        if not 0 <= self.icc < 1:
            raise EsrError(f"The intraclass correlation is at least 0 and below 1, not {self.icc}.")
        if not self.trials_per_latent >= 1:
            raise EsrError("A latent needs at least one trial.")

    @classmethod
    def of(cls, changes: Floats, clusters: Sequence[Hashable]) -> "PairedScores | None":
        """Spread and clustering of observed differences.

        Args:
            changes: Second score of each pair minus the first.
            clusters: Of each pair.

        Returns:
            None where they do not differ among themselves, or one latent tells nothing.
        """
        _, index = np.unique(np.array([str(one) for one in clusters]), return_inverse=True)
        sizes = np.bincount(index)
        if len(sizes) < 2 or np.ptp(changes) == 0:
            return None
        apart = changes - changes.mean()
        pairs = (sizes * (sizes - 1)).sum()
        alike = (np.bincount(index, apart) ** 2).sum() - (apart**2).sum()
        icc = alike / pairs / apart.var() if pairs else 0.0
        # Estimates scatter around 0 when there is none; trials of a latent are not less alike.
        return cls(float(changes.std(ddof=1)), min(max(float(icc), 0.0), 0.99), float(sizes.mean()))

    @property
    def of_a_latent(self) -> float:
        """Standard deviation of a latent's mean difference."""
        trials = self.trials_per_latent
        return self.deviation * math.sqrt((1 + (trials - 1) * self.icc) / trials)


def score_power(
    design: PairedScores, difference: float, latents: int, alpha: float = 0.05
) -> float:
    """Chance that a two-sided t test over the latents sees a mean difference."""
    if latents < 2:
        raise EsrError("A test over latents needs two of them.")
    shift = math.sqrt(latents) * abs(difference) / design.of_a_latent
    critical = student.ppf(1 - alpha / 2, latents - 1)
    # Of the far tail, where there is next to nothing, scipy knows no number.
    return float(
        nct.sf(critical, latents - 1, shift) + np.nan_to_num(nct.cdf(-critical, latents - 1, shift))
    )


def least_difference(
    design: PairedScores, latents: int, chance: float = 0.8, alpha: float = 0.05
) -> float:
    """The least mean difference that so many latents see with that chance."""
    if latents < 2:
        raise EsrError("A test over latents needs two of them.")

    def short(difference: float) -> float:
        return score_power(design, difference, latents, alpha) - chance

    farthest = design.of_a_latent
    while short(farthest) < 0:
        farthest *= 2
    return float(brentq(short, 0.0, farthest))


def latents_for_difference(
    design: PairedScores, difference: float, chance: float = 0.8, alpha: float = 0.05
) -> int:
    """Latents with which a mean difference is seen with that chance."""
    if not difference:
        raise EsrError("A difference of 0 is nothing to see.")
    if not 0 < alpha < chance < 1:
        raise EsrError("It takes 0 < alpha < power < 1.")
    below, enough = 1, 2
    while score_power(design, difference, enough, alpha) < chance:
        below, enough = enough, 2 * enough
    while enough - below > 1:
        middle = (below + enough) // 2
        if score_power(design, difference, middle, alpha) < chance:
            below = middle
        else:
            enough = middle
    return enough
