"""Agreement of judges as tables for the terminal."""

from rich.table import Table

from esr_eval.report.agreement import AgreementReport
from esr_eval.report.intervals import with_interval
from esr_eval.stats.rates import Estimate, Rate
from esr_eval.text import one_line


def judge_table(report: AgreementReport) -> Table:
    """What each judge found, and what could not be used of it."""
    table = Table(title=f"Judges of the same {report.responses} responses")
    for column in ("judge", "judged", "unscored", "multi-attempt rate"):
        table.add_column(column, justify="left" if column == "judge" else "right")
    for judge in report.judges:
        table.add_row(
            one_line(judge.name),
            str(judge.judged),
            str(judge.unscored),
            _share(judge.multi_attempt),
        )
    return table


def pair_table(report: AgreementReport) -> Table:
    """Every pair of judges compared."""
    table = Table(
        title="Agreement of judges, 95 % intervals clustered by latent",
        caption="Direction: of responses with several attempts for both judges, whether the last "
        "is better than the first. Published, for five judges: over 95 % agreement on several "
        "attempts, 93 to 97 % on direction.",
    )
    table.add_column("judges", overflow="fold")
    for column in ("responses", "agree on several attempts", "kappa", "agree on direction"):
        table.add_column(column, justify="right")
    for pair in report.pairs:
        table.add_row(
            f"{one_line(pair.first)} / {one_line(pair.second)}",
            str(pair.multi_attempt.trials if pair.multi_attempt else 0),
            _share(pair.multi_attempt),
            _number(pair.kappa, ".2f"),
            _share(pair.direction, with_trials=True),
        )
    return table


def _share(found: Rate | None, with_trials: bool = False) -> str:
    if found is None:
        return "-"
    of = f" of {found.trials}" if with_trials else ""
    return _number(found.estimate, ".1f", f" %{of}", 100)


def _number(found: Estimate | None, form: str, unit: str = "", scale: float = 1) -> str:
    if found is None:
        return "-"
    return with_interval(found.value, found.low, found.high, form, unit, scale)
