"""What so many trials can show at all, and what they cannot: from the power analysis."""

from collections.abc import Sequence

from esr_eval.logs.conditions import Condition
from esr_eval.report.evidence import Evidence
from esr_eval.report.recovery import recoveries
from esr_eval.report.section import Section, count
from esr_eval.stats.power import ASSUMED_ICC, ASSUMED_LATENT_CORRELATION, Design, least_change
from esr_eval.stats.rates import intraclass_correlation
from esr_eval.text import one_line

CHANCE = 0.8
_CHANCE = f"{100 * CHANCE:.0f} %"
_RATES = {"multi_attempt": "multi-attempt rate", "esr": "ESR rate"}
_FEW = 30
"""Latents below which the normal approximation is a little hopeful."""


def reach_section(evidence: Evidence) -> Section | None:
    """Which effects these main runs' trials would have shown."""
    said = what_can_be_seen(evidence.conditions)
    if not said:
        return None
    return Section(
        id="reach",
        title="What these trials can show",
        question="Which effects would so many trials have seen, and which not?",
        answers=said,
    )


def what_can_be_seen(conditions: Sequence[Condition]) -> list[str]:
    """For each main run, the changes of its rates that a replay would see; for pairs, of scores."""
    mains = [one for one in conditions if one.experiment and one.experiment.id == "esr"]
    said = [
        sentence
        for one in mains
        for metric in _RATES
        if (sentence := _rate(one, metric)) is not None
    ]
    if said:
        seen = (one.measures.get(metric) for one in mains for metric in _RATES)
        few = any(found is not None and found.clusters < _FEW for found in seen)
        said.insert(
            0,
            "Run again under another condition, trials of a main run show with a power of "
            f"{_CHANCE} these changes; what lies between they cannot show. (That latents "
            f"correlate by {ASSUMED_LATENT_CORRELATION:g} between conditions is assumed"
            f"{f'; with fewer than {_FEW} latents this is a little hopeful' if few else ''}.)",
        )
    for pair in recoveries(conditions):
        visible = pair.visible
        if visible is not None and pair.spread is not None:
            said.append(
                f"{one_line(pair.subject)}, {pair.name}: {count(pair.pairs, 'pair')} see a "
                f"difference of recovered scores of {visible:.1f} points or more with a power of "
                f"{_CHANCE} (differences spread by {pair.spread.deviation:.1f}, correlation "
                f"within a latent {pair.spread.icc:.2f}); smaller ones they cannot show."
            )
    return said


def _rate(one: Condition, metric: str) -> str | None:
    found = one.measures.get(metric)
    if found is None or found.clusters < 2:
        return None
    known = one.trials.loc[one.trials[metric].notna(), ["latent", metric]]
    icc = intraclass_correlation(known[metric].to_numpy(float), known["latent"].to_numpy())
    how = "as in these trials" if icc is not None else "assumed"
    clustering = ASSUMED_ICC if icc is None else min(max(icc, 0.0), 0.99)
    # A rate of none (or all) that were found is not known to be exactly that.
    half = 0.5 / found.n
    base = min(max(found.value, half), 1 - half)
    design = Design(base, base / 2, icc=clustering, trials_per_latent=found.n / found.clusters)
    fall, rise = (least_change(design, found.clusters, up, CHANCE) for up in (False, True))
    falls = "no fall, not even to 0" if fall is None else f"a fall to {100 * fall:.1f} % or less"
    if not found.value:
        falls = "no fall (a rate of 0 cannot fall)"
    rises = "no rise" if rise is None else f"a rise to {100 * rise:.1f} % or more"
    return (
        f"{one_line(one.name)}, {_RATES[metric]} {100 * found.value:.1f} % of "
        f"{count(found.n, 'trial')} ({count(found.clusters, 'latent')}): {falls}, and {rises} "
        f"(correlation of trials of a latent {clustering:.2f}, {how})."
    )
