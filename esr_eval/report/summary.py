"""Tables for the terminal: metrics of logs side by side, their differences, and designs to plan."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import (
    AGAIN,
    Condition,
    TrialKey,
    alarms_of,
    differences,
    read_values,
    scored,
    shared_trials,
    told_reasons,
    unscored,
)
from esr_eval.logs.measures import ASSUMED, Measured
from esr_eval.logs.reading import Note, read_each
from esr_eval.logs.stored import StoredLog, read_stored
from esr_eval.report import injected, protective
from esr_eval.report.evidence import run_names
from esr_eval.report.section import RULE, Bounded, Cell, Table, mean, percent, with_interval
from esr_eval.stats.means import clustered_mean
from esr_eval.stats.power import (
    PUBLISHED_LATENTS,
    PUBLISHED_TRIALS,
    Design,
    design_effect,
    latents_needed,
    power,
)
from esr_eval.stats.rates import cluster_counts, cross_correlation, intraclass_correlation
from esr_eval.text import one_line, told_apart


class Row(NamedTuple):
    """One metric of the table: its name in the log, and how it is shown."""

    key: str
    title: str
    is_rate: bool


ROWS = (
    Row("multi_attempt", "multi-attempt rate", True),
    Row("restart_phrase", "restart phrase found", True),
    Row("confirmed", "both, at one place", True),
    Row("disagreement", "judge and phrases disagree", True),
    Row("esr", "ESR rate", True),
    Row("esr_margin", "ESR by the margin", True),
    Row("recovered", "recovered", True),
    Row("improved", "improvement rate", True),
    Row("first_score", "mean first score", False),
    Row("change", "mean score change", False),
    Row("multi_attempt_clean", "multi-attempt, without degraded", True),
    Row("esr_clean", "ESR, without degraded", True),
    Row("first_score_clean", "first score, without degraded", False),
    Row("multi_attempt_sound", "multi-attempt, no loops", True),
    Row("esr_margin_sound", "by the margin, no loops", True),
    Row("recovered_sound", "recovered, no loops", True),
    Row("degraded", "degraded output", True),
    Row("degenerate", "loops of any shape", True),
    Row("no_attempt", "no attempt", True),
    Row("unscored", "unscored", True),
    Row("errored", "errored", True),
)
_ENDS = ("disagreement", "change", "recovered_sound")
"""Rows with a rule below them: restarts, improvement, the same without degraded trials."""


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


class OwnNumbers(NamedTuple):
    """How an experiment is told whose answers have no attempts.

    Attributes:
        scorer: Whose scores.
        rows: Its scored samples, of a log.
        cells: What they come to, under the run's name; all of the run together comes last, if ever.
        pooled: Whether it does.
        table: Shows that.
        frame: The same, one line for each number.
    """

    scorer: str
    rows: Callable[[StoredLog], Any]
    cells: Callable[[str, Any], Any]
    pooled: bool
    table: Callable[[Any], Table]
    frame: Callable[[Any], pd.DataFrame]


OWN_NUMBERS = {
    injected.EXPERIMENT: OwnNumbers(
        injected.SCORER,
        injected.probes_of,
        injected.cells_of,
        False,
        injected.cells_table,
        injected.cells_frame,
    ),
    protective.EXPERIMENT: OwnNumbers(
        protective.SCORER,
        protective.pushes_of,
        protective.cells_of,
        True,
        protective.sides_table,
        protective.cells_frame,
    ),
}
"""By the experiment's id."""


def read_summarised(
    paths: Sequence[Path], note: Note, every: bool = False
) -> tuple[list[Condition], list[tuple[Table, pd.DataFrame]]]:
    """Read logs and whole folders of logs, a folder's in the order in which they were made.

    Args:
        paths: Logs and folders.
        note: Told of the logs that are left out.
        every: Whether tables show the parts of a run, too, where it has been taken together.

    Returns:
        Logs with attempts, a condition for each judge; of the others, table and numbers.

    Raises:
        EsrError: A log that is named cannot be used, or there is none that can.
    """
    found = read_each(paths, _read_summarised, note)
    if not found:
        where = ", ".join(map(str, paths))
        raise EsrError(
            f"There is no scored log in {where}, sub-folders included: name the folder that "
            "`inspect eval` wrote to (--log-dir)."
        )
    runs = [one for _, _, conditions in found for one in conditions]
    told = []
    for own in OWN_NUMBERS.values():
        logs = [log for log, numbers, _ in found if numbers is own]
        for name, log in zip(run_names(logs), logs, strict=True):
            cells = own.cells(name, own.rows(log))
            shown = cells if every or not own.pooled else cells[-1:]
            told.append((own.table(shown), own.frame(cells).assign(**_about(log))))
    return runs, told


def _read_summarised(path: str) -> tuple[StoredLog, OwnNumbers | None, list[Condition]]:
    log = read_stored(path)
    own = OWN_NUMBERS.get(log.experiment.id) if log.experiment else None
    if own is None:
        return log, None, scored(log)
    if not len(own.rows(log)):
        raise unscored(log, own.scorer)
    return log, own, []


HEADLINES = (
    ("restarts", ROWS[0]),
    ("by both", ROWS[2]),
    ("ESR", ROWS[4]),
    ("first score", ROWS[8]),
)
"""What is told first, with its heading."""
MOST_PAIRS = 3
"""Differences between runs that are told without being asked for."""


def headline_table(runs: Sequence[Condition]) -> Table:
    """One row for each log: the few numbers that answer the question."""
    judges = dict.fromkeys(one_line(run.judge) for run in runs)
    unscored = dict.fromkeys(told_reasons(run.unscored) for run in runs if run.unscored)
    said = ["by both: by judge and phrase detector at one place."]
    if unscored:
        said.append(f"Unscored: {'; '.join(unscored)}.")
    said.append("All numbers: --all.")
    return Table(
        f"Answers that start over, judged by {', '.join(judges)}",
        ("", "trials", *(head for head, _ in HEADLINES)),
        [
            (name, _count(run), *(_shown(run, row) for _, row in HEADLINES))
            for name, run in zip(short_names(runs), runs, strict=True)
        ],
        " ".join(said),
    )


def metric_table(runs: Sequence[Condition]) -> Table:
    """One column for each log, one row for each metric, intervals in parentheses."""
    return Table(
        "Endogenous steering resistance, 95 % intervals clustered by latent",
        ("", *short_names(runs)),
        [*_header(runs), RULE, *_metric_rows(runs)],
        _reading(runs),
    )


def _metric_rows(runs: Sequence[Condition]) -> Iterator[tuple[Cell, ...]]:
    alarms = [alarms_of(run, runs) for run in runs]
    for row in ROWS:
        yield row.title, *(_shown(run, row) for run in runs)
        if row.key == "confirmed":
            yield "all restarts, estimated", *(_all_restarts(run) for run in runs)
        if row.key == "disagreement" and any(alarms):
            yield "false alarms: judge", *(percent(one.judge) if one else None for one in alarms)
            yield (
                "false alarms: phrases",
                *(percent(one.detector) if one else None for one in alarms),
            )
        if row.key in _ENDS:
            yield RULE


def _all_restarts(run: Condition) -> str | None:
    return percent(run.all_restarts) if isinstance(run.all_restarts, Measured) else None


def _reading(runs: Sequence[Condition]) -> str:
    """What it takes to read the table: bars, what the estimate rests on, what is not there."""
    estimates = [run.all_restarts for run in runs]
    said = [
        f"ESR by the margin, recovered: {' | '.join(dict.fromkeys(run.bars for run in runs))}.",
    ]
    if any(isinstance(one, Measured) for one in estimates):
        said.append(f"All restarts: {ASSUMED}.")
    if reasons := [one_line(one) for one in dict.fromkeys(estimates) if isinstance(one, str)]:
        said.append(f"No estimate of all restarts where {'; where '.join(reasons)}.")
    if any(run.lacking for run in runs):
        said.append(f"Logs scored by an earlier version lack some rows: {AGAIN} adds them.")
    return " ".join(said)


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
        about = _about(run.log) | {"condition": run.steering, "judge": run.judge}
        for row in ROWS:
            found = _found(run, row)
            bounds = {"value": found.value, "low": found.low, "high": found.high} if found else {}
            rows.append({**about, "metric": row.key, **bounds})
        alarms = alarms_of(run, runs)
        rows += [
            {**about, "metric": name, "value": one.value, "low": one.low, "high": one.high}
            for name, one in (
                ("all_restarts", run.all_restarts),
                ("false_alarms_judge", alarms.judge if alarms else None),
                ("false_alarms_detector", alarms.detector if alarms else None),
            )
            if isinstance(one, Measured)
        ]
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


def _about(log: StoredLog) -> dict[str, Any]:
    total, completed = _samples(log)
    return {
        "log": log.path,
        "subject": log.subject,
        "condition": log.condition,
        "backend": log.backend,
        "judge": log.judge,
        "status": log.status,
        "total": total,
        "completed": completed,
    }


def short_names(runs: Sequence[Condition]) -> list[str]:
    """Names of runs: subject and steering, and where they repeat what they differ in."""
    names = [one_line(f"{run.subject} {run.steering}") for run in runs]
    return told_apart(names, [differences(run) for run in runs])


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


def _samples(log: StoredLog) -> tuple[int, int]:
    """How many there were to be, and how many came to an end, as the log's results count them."""
    results = log.header.results
    return (results.total_samples, results.completed_samples) if results else (0, 0)


def _count(run: Condition) -> str:
    total, completed = _samples(run.log)
    done = f"{completed}" if completed == total else f"{completed}/{total}"
    return done if run.log.status == "success" else f"{done} ({run.log.status})"


def _found(run: Condition, row: Row) -> Bounded | None:
    return run.measures.get(row.key)


def _shown(run: Condition, row: Row) -> str | None:
    found = _found(run, row)
    if found is None:
        return None
    return percent(found) if row.is_rate else mean(found)


Values = Mapping[TrialKey, float]


@dataclass(frozen=True)
class Clustering:
    """What `esr_eval.stats.power.Design` needs to know of it; None where only one log tells."""

    icc: float
    latent_correlation: float | None = None
    pair_correlation: float | None = None


def clustering_of_logs(
    paths: Sequence[str | Path], metric: str = "multi_attempt", note: Note = lambda text: None
) -> dict[str, float]:
    """What is known of the clustering from no log, one log, or a log and its replay.

    Args:
        paths: Logs, or folders with no more of them.
        metric: Whose clustering.
        note: Told of what is left out, see `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: The logs cannot be used, or are more than two.
    """
    if not paths:
        return {}
    wanted = "Clustering is taken from one log, or from one and its replay"
    if len(paths) > 2:
        raise EsrError(f"{wanted}.")
    found = read_each(paths, lambda path: read_values(path, metric), note)
    if not 1 <= len(found) <= 2:
        raise EsrError(f"{wanted}, not from {len(found)}: name one, or two.")
    clustering = observed_pair_clustering(*found) if len(found) > 1 else observed_clustering(*found)
    return {name: value for name, value in asdict(clustering).items() if value is not None}


def observed_clustering(values: Values) -> Clustering:
    """Clustering within one condition.

    Raises:
        EsrError: It cannot be told from these trials.
    """
    latents = [key.latent for key in values]
    found = intraclass_correlation(list(values.values()), latents)
    if found is None:
        raise EsrError(
            "Clustering cannot be told from this log: it needs trials with the value and trials "
            "without it, and several trials of a latent."
        )
    # Estimates scatter around 0 when there is none; trials of a latent are not less alike.
    return Clustering(min(max(found, 0.0), 0.99))


def observed_pair_clustering(first: Values, second: Values) -> Clustering:
    """Clustering of two conditions that share trials.

    Raises:
        EsrError: It cannot be told from these trials.
    """
    before, after, latents = shared_trials(first, second)
    if not len(latents):
        raise EsrError("The two logs share no trial: the second is to be a replay of the first.")
    shared = [
        key for key in first if key in second and not np.isnan((first[key], second[key])).any()
    ]
    within = [
        observed_clustering({key: values[key] for key in shared}).icc for values in (first, second)
    ]
    icc = sum(within) / 2
    hits, trials = cluster_counts(before, latents)
    hits_after, _ = cluster_counts(after, latents)
    both, _ = cluster_counts(before * after, latents)
    between = cross_correlation(hits, hits_after, both, trials)
    assert between is not None  # as both conditions have a correlation of their own
    return Clustering(
        icc=icc,
        latent_correlation=min(max(between / icc, 0.0), 1.0) if icc else 1.0,
        # A replay that changed nothing would leave no variance to plan with.
        pair_correlation=min(float(np.corrcoef(before, after)[0, 1]), 0.99),
    )


def power_table(designs: Sequence[Design], chance: float = 0.8, alpha: float = 0.05) -> Table:
    """Needs of each design, and the power that the published one had at its clustering.

    Args:
        designs: Alike but for their clustering.
        chance: The power that is wanted.
        alpha: Level of the test.
    """
    one = designs[0]
    kind = "replayed pairs" if one.paired else "latents of its own each"
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
    return Table(
        f"{100 * one.base:g} % against {100 * one.reduced:g} %, {kind}, "
        f"two-sided at {100 * alpha:g} %",
        ("", *(f"ICC {one.icc:.2f}" if one.icc else "no clustering" for one in designs)),
        [
            ("design effect", *(f"{design_effect(design):.2f}" for design in designs)),
            (f"trials for {100 * chance:g} % power", *(f"{count:,}" for count in trials)),
            (
                f"latents, at {one.trials_per_latent:g} trials each",
                *(f"{count:,}" for count in needed),
            ),
            ("power of the published design", *(f"{100 * value:.0f} %" for value in had)),
        ],
        "trials and latents are of each condition; "
        f"published: {PUBLISHED_LATENTS} latents, {PUBLISHED_TRIALS:,} trials",
    )
