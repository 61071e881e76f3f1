"""Metric tables of several logs side by side, and their differences trial by trial."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from esr_eval.logs.conditions import Condition, shared_trials, told_reasons
from esr_eval.logs.measures import Measured
from esr_eval.report.section import RULE, Cell, Table, mean, percent, with_interval
from esr_eval.stats.means import clustered_mean
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


def paired_difference(first: Condition, second: Condition) -> Measured | None:
    """How far the second run's first-attempt scores lie from the first's, on the same trials.

    Trials pair by latent, topic, seed and epoch; those without a score in either run drop out.
    """
    scores = (one.by_trial("first_score") for one in (first, second))
    before, after, latents = shared_trials(*scores)
    if not len(latents):
        return None
    return Measured(
        *clustered_mean(after - before, latents.tolist()), len(latents), len(set(latents.tolist()))
    )


def metric_table(runs: Sequence[Condition]) -> Table:
    """One column for each log, one row for each metric, intervals in parentheses."""
    return Table(
        "Endogenous steering resistance, 95 % intervals clustered by latent",
        ("", *short_names(runs)),
        [
            *_header(runs),
            RULE,
            *((row.title, *(_shown(run, row) for run in runs)) for row in ROWS),
        ],
    )


def pair_table(runs: Sequence[Condition]) -> Table | None:
    """Paired differences of all pairs of logs that share trials; None when no pair does."""
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            with_interval(pair, "+.1f"),
            pair.n,
            pair.clusters,
        )
        for name, pair in _pairs(runs)
    ]
    if not rows:
        return None
    return Table(
        "Difference of first scores on the same latent, task and seed",
        ("", "difference", "trials", "latents"),
        rows,
    )


def summary_frame(runs: Sequence[Condition]) -> pd.DataFrame:
    """One line for each log and metric, and for each pair of logs that share trials."""
    rows: list[dict[str, object]] = []
    for run in runs:
        total, completed = _samples(run)
        about: dict[str, object] = {
            "log": run.log.path,
            "subject": run.subject,
            "condition": run.steering,
            "backend": run.log.backend,
            "judge": run.judge,
            "status": run.log.status,
            "total": total,
            "completed": completed,
        }
        for row in ROWS:
            found = run.recorded.get(row.key)
            rows.append({**about, "metric": row.key, **(asdict(found) if found else {})})
        for reason, count in run.unscored.items():
            # As text: among shares, pandas would write a count of 2 as 2.0.
            rows.append({**about, "metric": f"unscored: {reason}", "value": str(count)})
    for name, pair in _pairs(runs):
        # A pair is no one log: only its name, its trials and the difference are there.
        rows.append(
            {
                "log": name,
                "total": pair.n,
                "completed": pair.n,
                "metric": "first_score_difference",
                "value": pair.value,
                "low": pair.low,
                "high": pair.high,
            }
        )
    return pd.DataFrame(rows, dtype=object)


def short_names(runs: Sequence[Condition]) -> list[str]:
    """Names for the columns: subject and condition, numbered where they repeat."""
    names = [one_line(f"{run.subject} {run.steering}") for run in runs]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _pairs(runs: Sequence[Condition]) -> Iterator[tuple[str, Measured]]:
    names = short_names(runs)
    for (name, run), (other_name, other) in combinations(zip(names, runs, strict=True), 2):
        found = paired_difference(other, run)
        if found is not None:
            yield f"{name} minus {other_name}", found


def _header(runs: Sequence[Condition]) -> Iterator[tuple[str, ...]]:
    yield "log", *(Path(run.log.path).stem[-8:] for run in runs)
    yield "backend", *(one_line(run.log.backend) for run in runs)
    yield "judge", *(one_line(run.judge) for run in runs)
    yield "trials", *(_count(run) for run in runs)
    if any(run.unscored for run in runs):
        yield "unscored because", *(told_reasons(run.unscored) or "-" for run in runs)


def _samples(run: Condition) -> tuple[int, int]:
    """How many there were to be, and how many came to an end, as the log's results count them."""
    results = run.log.header.results
    return (results.total_samples, results.completed_samples) if results else (0, 0)


def _count(run: Condition) -> str:
    total, completed = _samples(run)
    done = f"{completed}" if completed == total else f"{completed}/{total}"
    return done if run.log.status == "success" else f"{done} ({run.log.status})"


def _shown(run: Condition, row: Row) -> str | None:
    found = run.recorded.get(row.key)
    if found is None:
        return None
    return percent(found) if row.is_rate else mean(found)
