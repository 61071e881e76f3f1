"""The verdict on a new log as a table, and what was asked for as `--worse` and `--margin`."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from esr_eval.report.changes import DIRECTIONS, METRICS, Change, Metric
from esr_eval.report.intervals import with_interval
from esr_eval.report.regression import COMPLETED_MARGIN, Comparison, NotComparableError
from esr_eval.text import one_line

ALL = "all"
COMPLETED = "completed"


def read_metrics(worse: Sequence[str], margins: Sequence[str]) -> tuple[dict[str, Metric], float]:
    """Directions and margins, `METRIC=WHAT` each, over the defaults.

    Returns:
        The metrics, and the margin of completed trials.

    Raises:
        NotComparableError: A metric or direction that there is not, or a margin that is no number.
    """
    metrics, completed = dict(METRICS), COMPLETED_MARGIN
    for name, direction in _pairs("--worse", worse, (*METRICS, ALL)):
        if direction not in DIRECTIONS:
            raise NotComparableError(f"--worse takes {', '.join(DIRECTIONS)}, not {direction!r}.")
        for metric in METRICS if name == ALL else (name,):
            metrics[metric] = metrics[metric]._replace(worse=direction)
    for name, text in _pairs("--margin", margins, (*METRICS, COMPLETED)):
        try:
            size = float(text)
        except ValueError:
            size = -1.0
        if not 0 <= size < float("inf"):
            raise NotComparableError(f"--margin {name}={text}: a margin is a number, 0 or more.")
        if name == COMPLETED:
            completed = size
        else:
            metrics[name] = metrics[name]._replace(margin=size)
    return metrics, completed


def change_table(found: Comparison, metrics: Mapping[str, Metric], level: float) -> Table:
    """One line for each metric of each pair of logs."""
    names = list(dict.fromkeys(change.log for change in found.changes))
    table = Table(
        title=f"New against base: {one_line(names[0])}" if len(names) == 1 else "New against base",
        caption=f"Intervals: {100 * level:g} %, clustered by latent. p: by Holm over all tests ("
        f"{sum(change.p_value is not None for change in found.changes)}); - where all trials are "
        "alike, or there is one latent only.",
    )
    for column in ("", "base", "new", "difference", "p", "trials", "verdict"):
        table.add_column(column, justify="left" if column in ("", "verdict") else "right")
    for name in names:
        if len(names) > 1:
            table.add_section()
            table.add_row(one_line(name))
        for change in found.changes:
            if change.log == name:
                table.add_row(*_cells(change, metrics[change.metric].is_rate))
    return table


def _cells(change: Change, is_rate: bool) -> Iterator[str | Text]:
    scale, unit = (100.0, " %") if is_rate else (1.0, "")
    yield change.metric
    yield f"{scale * change.base:.1f}{unit}"
    yield f"{scale * change.new:.1f}{unit}"
    difference = change.difference
    yield with_interval(difference.value, difference.low, difference.high, "+.1f", scale=scale)
    yield "-" if change.corrected is None else f"{change.corrected:.2g}"
    base, new = change.trials
    yield f"{base} pairs" if change.paired else f"{base}, {new}"
    yield Text(change.verdict, "bold red" if change.verdict == "REGRESSION" else "")


def _pairs(option: str, given: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise NotComparableError(
                f"{option} {text} is not of the form METRIC=VALUE with one of {', '.join(names)}."
            )
        yield name, value
