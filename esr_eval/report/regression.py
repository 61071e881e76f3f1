"""Has a new log become worse than a stored one, beyond what noise explains?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, read_condition, scorers_of
from esr_eval.logs.reading import Note, read_each
from esr_eval.report.changes import DIRECTIONS, METRICS, Change, Metric, change_of, judge, values_of
from esr_eval.report.section import RULE, Alarm, Cell, Column, Table, with_interval
from esr_eval.stats.comparisons import RESAMPLES
from esr_eval.text import one_line

COMPLETED_MARGIN = 0.02
"""Share of the base's trials that may be missing in the new log without being a regression."""


class NotComparableError(EsrError):
    """No verdict is possible; told apart from a regression by its exit status."""

    exit_code = 2


@dataclass(frozen=True)
class Comparison:
    """All metrics of all pairs of logs, and what needs no statistics."""

    changes: list[Change]
    problems: list[str]
    notes: list[str]

    @property
    def regressed(self) -> bool:
        """Whether anything is worse than the base."""
        return bool(self.problems) or any(one.verdict == "REGRESSION" for one in self.changes)


def read_logs(path: str | Path, note: Note = lambda text: None) -> dict[str, Condition]:
    """A log, or all logs of a folder and its folders, by their names.

    Args:
        path: The log or folder.
        note: Told of what is left out of a folder, see `esr_eval.logs.reading.read_each`.

    Raises:
        NotComparableError: There is none, one that is named cannot be read, or two logs have one
            name.
    """
    logs: dict[str, Condition] = {}
    try:
        conditions = read_each([path], read_condition, note)
    except EsrError as error:
        raise NotComparableError(error.message) from None
    for one in conditions:
        if one.name in logs:
            raise NotComparableError(
                f"{path} has several logs of {one.name}: name the one to compare."
            )
        logs[one.name] = one
    if not logs:
        raise NotComparableError(f"There is no log in {path}.")
    return logs


def compare_logs(
    base: Mapping[str, Condition],
    new: Mapping[str, Condition],
    *,
    metrics: Mapping[str, Metric] = METRICS,
    level: float = 0.95,
    completed_margin: float = COMPLETED_MARGIN,
    allow_differences: bool = False,
    same_trials: bool = False,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare logs of the same name; of one log each, these two whatever their names.

    Args:
        base: Stored logs by name.
        new: New logs by name.
        metrics: What is compared, and which direction is worse.
        level: Coverage of the intervals; chance of a false alarm is at most 1 - level.
        completed_margin: Share of the base's trials that may be missing.
        allow_differences: Compare logs of unlike settings too, and say what differs.
        same_trials: Refuse a new log that has other trials than the base.
        resamples: Bootstrap samples of the intervals of rates.

    Raises:
        NotComparableError: The logs measure different things, or the base is not whole.
    """
    if not 0 < level < 1:
        raise NotComparableError(f"The level {level:g} does not lie between 0 and 1.")
    lone = len(base) == len(new) == 1
    missing = [] if lone else [f"{name}: there is no new log" for name in base if name not in new]
    found = Comparison([], missing, [])
    for old, young in (
        zip(base.values(), new.values(), strict=True) if lone else _matched(base, new)
    ):
        strange = other_trials(old, young)
        unlike = [*differences(old, young), *(strange if same_trials else ())]
        _check(old, young, [] if allow_differences else unlike)
        changes = (
            change_of(old, young, name, metric, level, resamples)
            for name, metric in metrics.items()
        )
        found.changes.extend(change for change in changes if change is not None)
        problems, notes = failures(old, young, completed_margin), remarks(old, young)
        found.problems.extend(f"{young.name}: {text}" for text in problems)
        found.notes.extend(
            f"{young.name}: {text}" for text in dict.fromkeys((*unlike, *strange, *notes))
        )
    return replace(found, changes=judge(found.changes, metrics, level))


def _check(base: Condition, new: Condition, unlike: list[str]) -> None:
    if base.log.status != "success":
        raise NotComparableError(
            f"{base.log.path} is no base: its run has the status {base.log.status}."
        )
    if unlike:
        raise NotComparableError(
            f"{new.log.path} does not measure what {base.log.path} does: {'; '.join(unlike)}. "
            "Run it with the same settings, or say --allow-differences."
        )


def _matched(
    base: Mapping[str, Condition], new: Mapping[str, Condition]
) -> list[tuple[Condition, Condition]]:
    found = [(base[name], new[name]) for name in base if name in new]
    if not found:
        raise NotComparableError(
            f"No log measures what another does: base {', '.join(base)}; new {', '.join(new)}."
        )
    return found


FROM_ANSWERS = ("sae_digest", "rubric")
"""Settings that only trials with an answer tell of."""


def differences(base: Condition, new: Condition) -> list[str]:
    """What decides the numbers and is not the same in both logs."""
    known, other = base.settings, new.settings
    found = [
        f"{name} {known.get(name)} and {other.get(name)}"
        for name in dict.fromkeys((*known, *other))
        if known.get(name) != other.get(name)
        and not (name in FROM_ANSWERS and None in (known.get(name), other.get(name)))
    ]
    if base.log.planned != new.log.planned:
        found.append(f"{base.log.planned} and {new.log.planned} trials")
    before, after = base.by_trial("strength"), new.by_trial("strength")
    shared = before.keys() & after.keys()
    if moved := sum(before[key] != after[key] for key in shared):
        found.append(f"other boosts in {moved} of {len(shared)} trials")
    return found


def other_trials(base: Condition, new: Condition) -> list[str]:
    """That the new log has trials of its own: other latents, tasks or seeds were drawn."""
    strange = len(set(new.keys) - set(base.keys))
    return [f"{strange} of {len(new.keys)} trials are not the base's"] if strange else []


def remarks(base: Condition, new: Condition) -> list[str]:
    """What is worth knowing of the two logs and keeps nobody from comparing them."""
    before, after = base.log.versions, new.log.versions
    moved = [
        f"{name} {before[name]} and {after[name]}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    found = [f"other versions: {', '.join(sorted(moved))}"] if moved else []
    if bool(values_of(base, "improvement")) != bool(values_of(new, "improvement")):
        found.append("only one of the logs has the scorer esr_eval/improvement")
    for count in (len(scorers_of(one.log)) for one in (base, new)):
        if count > 1:
            found.append(f"scored {count} times; the first is taken")
    return found


def failures(base: Condition, new: Condition, margin: float) -> list[str]:
    """Regressions that need no statistics.

    Args:
        base: The stored log.
        new: The new one.
        margin: Share of the trials due that may be missing.
    """
    found = [] if new.log.status == "success" else [f"the run's status is {new.log.status}"]
    # A smaller plan is another setting and no failure; what was planned has to be there.
    due = min(base.completed, new.log.planned)
    if new.completed < due * (1 - margin):
        found.append(f"{new.completed} trials came to an end; {due} were due")
    for metric in METRICS:
        unjudged = metric == "improvement" and not values_of(new, "improvement_unscored")
        if values_of(base, metric) and not values_of(new, metric) and not unjudged:
            found.append(f"no trial has a value of {metric} any more")
    return found


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
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        if len(names) > 1:
            rows += [RULE, (one_line(name), *[""] * 6)]
        rows += [
            _row(change, metrics[change.metric].is_rate)
            for change in found.changes
            if change.log == name
        ]
    return Table(
        f"New against base: {one_line(names[0])}" if len(names) == 1 else "New against base",
        ("", "base", "new", "difference", "p", "trials", Column("verdict", "left")),
        rows,
        f"Intervals: {100 * level:g} %, clustered by latent. p: by Holm over all tests ("
        f"{sum(change.p_value is not None for change in found.changes)}); - where all trials are "
        "alike, or there is one latent only.",
    )


def _row(change: Change, is_rate: bool) -> tuple[Cell, ...]:
    scale, unit = (100.0, " %") if is_rate else (1.0, "")
    base, new = change.trials
    return (
        change.metric,
        f"{scale * change.base:.1f}{unit}",
        f"{scale * change.new:.1f}{unit}",
        with_interval(change.difference, "+.1f", scale=scale),
        None if change.corrected is None else f"{change.corrected:.2g}",
        f"{base} pairs" if change.paired else f"{base}, {new}",
        Alarm(change.verdict) if change.verdict == "REGRESSION" else change.verdict,
    )


def _pairs(option: str, given: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise NotComparableError(
                f"{option} {text} is not of the form METRIC=VALUE with one of {', '.join(names)}."
            )
        yield name, value
