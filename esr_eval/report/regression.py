"""Has a new log become worse than a stored one, beyond what noise explains?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from esr_eval.errors import EsrError
from esr_eval.logs.measured import Measured, read_all
from esr_eval.logs.reading import Note
from esr_eval.report.changes import METRICS, Change, Metric, change_of, judge
from esr_eval.report.comparable import differences, failures, other_trials, remarks
from esr_eval.stats.bootstrap import RESAMPLES

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


def read_logs(path: str | Path, note: Note = lambda text: None) -> dict[str, Measured]:
    """As `measured.read_all`, an unusable log being no verdict.

    Raises:
        NotComparableError: See `measured.read_all`.
    """
    try:
        return read_all(path, note)
    except EsrError as error:
        raise NotComparableError(error.message) from None


def compare_logs(
    base: Mapping[str, Measured],
    new: Mapping[str, Measured],
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


def _check(base: Measured, new: Measured, unlike: list[str]) -> None:
    if base.status != "success":
        raise NotComparableError(f"{base.path} is no base: its run has the status {base.status}.")
    if unlike:
        raise NotComparableError(
            f"{new.path} does not measure what {base.path} does: {'; '.join(unlike)}. Run it with "
            "the same settings, or say --allow-differences."
        )


def _matched(
    base: Mapping[str, Measured], new: Mapping[str, Measured]
) -> list[tuple[Measured, Measured]]:
    found = [(base[name], new[name]) for name in base if name in new]
    if not found:
        raise NotComparableError(
            f"No log measures what another does: base {', '.join(base)}; new {', '.join(new)}."
        )
    return found
