"""A discovery's detectors on the terminal."""

from rich.table import Table

from esr_eval.detectors.report import Detector, DetectorReport, Rule
from esr_eval.text import one_line

ASKED = {
    "silent": "active on at most {max_matched:.0%} of matched and at least {min_mismatched:.0%} of "
    "mismatched pairs",
    "separability": "the {top} of greatest AUC between mismatched and matched pairs",
}


def detector_table(report: DetectorReport, rule: Rule) -> Table:
    """The latents that a rule finds; where it finds none, those that come closest."""
    found = report.sets[rule]
    settings = report.model_dump(include={"max_matched", "min_mismatched", "top"})
    table = Table(title=f"{rule}: {ASKED[rule].format(**settings)}", caption=_caption(report, rule))
    for column in ("latent", "matched", "mismatched", "max", "max", "AUC", "fires", "label"):
        table.add_column(column, justify="left" if column == "label" else "right")
    table.columns[3].header, table.columns[4].header = "max matched", "max mismatched"
    for one in found.detectors or found.nearest:
        style = None if found.detectors else "dim"
        table.add_row(str(one.latent), *figures(one), one_line(one.label or ""), style=style)
    return table


def figures(one: Detector) -> tuple[str, ...]:
    """Shares of active pairs, mean maxima, AUC and firing rate, as tables show them."""
    return (
        f"{one.matched_active:.0%}",
        f"{one.mismatched_active:.0%}",
        f"{one.matched_max:.2f}",
        f"{one.mismatched_max:.2f}",
        f"{one.auc:.3f}",
        f"{one.rate:.2%}",
    )


def _caption(report: DetectorReport, rule: Rule) -> str:
    found = report.sets[rule]
    count = len(found.detectors)
    said = (
        f"{count} of {report.n_latents} latents"
        if count
        else f"No latent of {report.n_latents}; shown are those that come closest"
    )
    missing = f", {report.missing} without a reading left out" if report.missing else ""
    return (
        f"{said}. Were task and answer indifferent to the latents, about "
        f"{found.expected_by_chance:.2g} would be found. {report.pairs} matched and as many "
        f"mismatched pairs{missing}; {report.positions} positions at layer {report.layer} of "
        f"{report.runtime.subject}. Columns: share of pairs with the latent active, mean of the "
        "pairs' maxima, share of positions at which it fires."
    )
