"""Metric tables of several logs side by side, on the terminal and as CSV."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from esr_eval._util import spreadsheet
from esr_eval.logs.runs import Run, told_reasons
from esr_eval.report.intervals import with_interval
from esr_eval.report.pairs import PairedDifference, paired_difference
from esr_eval.stats.rates import Estimate
from esr_eval.text import one_line


class Row(NamedTuple):
    """One metric of the table: its name in the log, and how it is shown."""

    key: str
    title: str
    is_rate: bool


ROWS = (
    Row("multi_attempt", "multi-attempt rate", True),
    Row("esr", "ESR rate", True),
    Row("improved", "improvement rate", True),
    Row("first_score", "mean first score", False),
    Row("change", "mean score change", False),
    Row("multi_attempt_clean", "multi-attempt, without degraded", True),
    Row("esr_clean", "ESR, without degraded", True),
    Row("first_score_clean", "first score, without degraded", False),
    Row("degraded", "degraded output", True),
    Row("no_attempt", "no attempt", True),
    Row("unscored", "unscored", True),
    Row("errored", "errored", True),
    Row("restart_phrase", "restart phrase found", True),
    Row("disagreement", "judge and phrases disagree", True),
)


def metric_table(runs: Sequence[Run]) -> Table:
    """One column for each log, one row for each metric, intervals in brackets."""
    table = Table(title="Endogenous steering resistance, 95 % intervals clustered by latent")
    table.add_column("")
    for column in short_names(runs):
        table.add_column(column, justify="right")
    for title, values in _header(runs):
        table.add_row(title, *values)
    table.add_section()
    for row in ROWS:
        table.add_row(row.title, *(_shown(run.estimates.get(row.key), row) for run in runs))
    return table


def pair_table(runs: Sequence[Run]) -> Table | None:
    """Paired differences of all pairs of logs that share trials; None when no pair does."""
    pairs = list(_pairs(runs))
    if not pairs:
        return None
    table = Table(title="Difference of first scores on the same latent, task and seed")
    for column in ("", "difference", "trials", "latents"):
        table.add_column(column, justify="left" if not column else "right")
    for name, pair in pairs:
        table.add_row(
            name,
            with_interval(pair.difference, pair.low, pair.high, "+.1f"),
            str(pair.trials),
            str(pair.clusters),
        )
    return table


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """One line for each log and metric, and for each pair of logs that share trials."""
    about = ("log", "subject", "condition", "backend", "judge", "status", "total", "completed")
    rows: list[tuple[object, ...]] = [(*about, "metric", "value", "low", "high")]
    for run in runs:
        who = (run.path, run.subject, run.condition, run.backend, run.judge)
        counts = (run.status, run.total, run.completed)
        for row in ROWS:
            found = run.estimates.get(row.key)
            values = (found.value, found.low, found.high) if found else ("", "", "")
            rows.append((*who, *counts, row.key, *values))
        for reason, count in run.unscored.items():
            rows.append((*who, *counts, f"unscored: {reason}", count, "", ""))
    for name, pair in _pairs(runs):
        # A pair is no one log: only its name, its trials and the difference are there.
        shared = (pair.trials, pair.trials)
        difference = (pair.difference, pair.low, pair.high)
        rows.append((name, *[""] * 5, *shared, "first_score_difference", *difference))
    spreadsheet.write_csv(path, rows)


def short_names(runs: Sequence[Run]) -> list[str]:
    """Names for the columns: subject and condition, numbered where they repeat."""
    names = [one_line(f"{run.subject} {run.condition}") for run in runs]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _pairs(runs: Sequence[Run]) -> Iterator[tuple[str, PairedDifference]]:
    names = short_names(runs)
    for (name, run), (other_name, other) in combinations(zip(names, runs, strict=True), 2):
        found = paired_difference(other, run)
        if found is not None:
            yield f"{name} minus {other_name}", found


def _header(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    yield "log", [Path(run.path).stem[-8:] for run in runs]
    yield "backend", [one_line(run.backend) for run in runs]
    yield "judge", [one_line(run.judge) for run in runs]
    yield "trials", [_count(run) for run in runs]
    if any(run.unscored for run in runs):
        yield "unscored because", [told_reasons(run.unscored) or "-" for run in runs]


def _count(run: Run) -> str:
    done = f"{run.completed}" if run.completed == run.total else f"{run.completed}/{run.total}"
    return done if run.status == "success" else f"{done} ({run.status})"


def _shown(found: Estimate | None, row: Row) -> str:
    if found is None:
        return "-"
    unit, scale = (" %", 100) if row.is_rate else ("", 1)
    return with_interval(found.value, found.low, found.high, ".1f", unit, scale)
