"""How many trials and latents it takes to see that a rate fell, when trials cluster by latent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from statsmodels.stats.power import normal_power_het, normal_sample_size_one_tail

from esr_eval.errors import EsrError

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


def power_table(designs: Sequence[Design], chance: float = 0.8, alpha: float = 0.05) -> Table:
    """Needs of each design, and the power that the published one had at its clustering.

    Args:
        designs: Alike but for their clustering.
        chance: The power that is wanted.
        alpha: Level of the test.
    """
    one = designs[0]
    kind = "replayed pairs" if one.paired else "latents of its own each"
    table = Table(
        title=f"{100 * one.base:g} % against {100 * one.reduced:g} %, {kind}, "
        f"two-sided at {100 * alpha:g} %",
        caption="trials and latents are of each condition; "
        f"published: {PUBLISHED_LATENTS} latents, {PUBLISHED_TRIALS:,} trials",
    )
    table.add_column("")
    for design in designs:
        name = f"ICC {design.icc:.2f}" if design.icc else "no clustering"
        table.add_column(name, justify="right")
    needed = [latents_needed(design, chance, alpha) for design in designs]
    trials = [
        math.ceil(count * design.trials_per_latent)
        for count, design in zip(needed, designs, strict=True)
    ]
    published = PUBLISHED_TRIALS / PUBLISHED_LATENTS
    had = [
        power(replace(design, trials_per_latent=published), PUBLISHED_TRIALS, alpha)
        for design in designs
    ]
    table.add_row("design effect", *(f"{design_effect(design):.2f}" for design in designs))
    table.add_row(f"trials for {100 * chance:g} % power", *(f"{count:,}" for count in trials))
    table.add_row(
        f"latents, at {one.trials_per_latent:g} trials each", *(f"{count:,}" for count in needed)
    )
    table.add_row("power of the published design", *(f"{100 * value:.0f} %" for value in had))
    return table


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
