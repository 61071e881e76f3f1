"""Judges on trial: what each found of attempts that are known, how it scored, what it took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from inspect_ai.event import ModelEvent
from inspect_ai.log import EvalLog, EvalSample

from esr_eval.calibration.cost import price_of
from esr_eval.data.passages import Passage
from esr_eval.report.section import RULE, Cell, Column, Table, mean, percent, with_interval
from esr_eval.scorers.passages import LABELLED, NEAR, Place, match, places, scored_pairs
from esr_eval.scorers.phrases import find_restarts
from esr_eval.stats.means import clustered_mean
from esr_eval.stats.rates import Estimate, Rate, rate
from esr_eval.text import one_line

DETECTOR = "phrase detector"
"""Its row among the judges'."""
ALL = "all"


class Seen(NamedTuple):
    """A passage, and what a judge found in it; None where its verdict could not be used."""

    split: str
    kind: str
    labelled: list[Place]
    found: list[Place] | None


@dataclass(frozen=True)
class Restarts:
    """Restarts found among some passages; rates are None where nothing is there to count.

    Attributes:
        passages: How many there are.
        unusable: Of these, without a verdict that can be used: they count nowhere below.
        labelled: Restarts that there are.
        found: Of these, found at their place.
        invented: Found where there is none.
        precision: Share of what was found that is there.
        recall: Share of what is there that was found.
        false_alarms: Share of passages without a restart in which one was found.
    """

    passages: int
    unusable: int
    labelled: int
    found: int
    invented: int
    precision: Rate | None
    recall: Rate | None
    false_alarms: Rate | None

    @property
    def missed(self) -> int:
        """Restarts that were not found."""
        return self.labelled - self.found


@dataclass(frozen=True)
class Scores:
    """A judge's scores beside the authors'.

    Attributes:
        attempts: Attempts that both scored.
        error: Mean distance.
        bias: Mean of the judge's minus the author's.
    """

    attempts: int
    error: Estimate
    bias: Estimate


@dataclass(frozen=True)
class Spent:
    """What the verdicts took; None where it is not known.

    Attributes:
        verdicts: Passages that the judge was asked about.
        read: Tokens that it read.
        written: Tokens that it wrote.
        dollars: For these.
        seconds: Of a verdict, the median.
    """

    verdicts: int
    read: int
    written: int
    dollars: float | None
    seconds: float | None


@dataclass(frozen=True)
class Trial:
    """One judge on trial: everything that it said, and what that took; None of the detector."""

    judge: str
    seen: list[Seen]
    spent: Spent | None


def trial_of(log: EvalLog, judge: str, price: tuple[float, float] | None = None) -> Trial:
    """Read a log of the task `passages`.

    Args:
        log: The log, with its samples.
        judge: Who judged.
        price: Dollars per million tokens read and written; None takes what is known.
    """
    samples = sorted(log.samples or [], key=lambda sample: int(sample.metadata["passage"]))
    return Trial(judge, [_seen(one) for one in samples], _spent(samples, price or price_of(judge)))


def detector_trial(passages: Sequence[Passage]) -> Trial:
    """The phrase detector on the same passages: it finds restarts, and scores nothing."""
    seen = [
        Seen(
            one.split,
            one.kind,
            [Place(start) for start in one.starts()],
            [Place(0), *(Place(restart.start) for restart in find_restarts(one.text, one.task))],
        )
        for one in passages
    ]
    return Trial(DETECTOR, seen, None)


def _seen(sample: EvalSample) -> Seen:
    about = sample.metadata
    score = next(iter((sample.scores or {}).values()), None)
    usable = score is not None and isinstance(score.value, dict) and score.value["unscored"] == 0
    found = places((score.metadata or {})["attempts"]) if usable and score else None
    labelled = [Place(int(start), given) for start, given in about[LABELLED]]
    return Seen(about["split"], about["kind"], labelled, found)


def _spent(samples: Sequence[EvalSample], price: tuple[float, float] | None) -> Spent:
    read = written = 0
    seconds = []
    for sample in samples:
        calls = [event for event in sample.events if isinstance(event, ModelEvent)]
        seconds.append(sum(event.working_time or 0.0 for event in calls))
        for usage in (event.output.usage for event in calls):
            if usage is not None:
                cached = (usage.input_tokens_cache_read or 0) + (
                    usage.input_tokens_cache_write or 0
                )
                read += usage.input_tokens + cached
                written += usage.output_tokens
    dollars = None if price is None else (read * price[0] + written * price[1]) / 1e6
    return Spent(len(samples), read, written, dollars, median(seconds) if seconds else None)


def restarts_of(seen: Sequence[Seen]) -> Restarts:
    """Count the restarts of some passages, by place."""
    right: list[tuple[float, int]] = []
    there: list[tuple[float, int]] = []
    alarms: list[tuple[float, int]] = []
    unusable = 0
    for number, one in enumerate(seen):
        if one.found is None:
            unusable += 1
            continue
        pairs, invented, missed = match(one.labelled[1:], one.found[1:])
        right += [(1.0, number)] * len(pairs) + [(0.0, number)] * invented
        there += [(1.0, number)] * len(pairs) + [(0.0, number)] * missed
        if len(one.labelled) == 1:
            alarms.append((float(invented > 0), number))
    found = sum(value == 1 for value, _ in there)
    return Restarts(
        passages=len(seen),
        unusable=unusable,
        labelled=len(there),
        found=found,
        invented=len(right) - found,
        precision=_rate(right),
        recall=_rate(there),
        false_alarms=_rate(alarms),
    )


def _rate(numbered: Sequence[tuple[float, int]]) -> Rate | None:
    """Restarts of one passage are alike: the passages are the draws."""
    return rate([value for value, _ in numbered], [number for _, number in numbered])


def scores_of(seen: Sequence[Seen]) -> Scores | None:
    """A judge's scores beside the authors'; None where it scored nothing that was labelled."""
    errors = [
        (judge - author, number)
        for number, one in enumerate(seen)
        for author, judge in scored_pairs(one.labelled, one.found or [])
    ]
    if not errors:
        return None
    numbers = [number for _, number in errors]
    return Scores(
        len(errors),
        Estimate(*clustered_mean([abs(error) for error, _ in errors], numbers)),
        Estimate(*clustered_mean([error for error, _ in errors], numbers)),
    )


def _parts(seen: Sequence[Seen], key: Callable[[Seen], Any]) -> dict[Any, list[Seen]]:
    """Passages by something of theirs, in order of appearance."""
    parts: dict[Any, list[Seen]] = {}
    for one in seen:
        parts.setdefault(key(one), []).append(one)
    return parts


_COUNTS = ("restarts", "found", "invented", "missed", "precision", "recall", "false alarms")


def restart_table(trials: Sequence[Trial]) -> Table:
    """What each judge found, over all passages and by split."""
    rows: list[tuple[Cell, ...]] = []
    for trial in trials:
        splits = _parts(trial.seen, lambda one: one.split)
        groups = {ALL: trial.seen} | splits if len(splits) > 1 else splits
        for name, seen in groups.items():
            found = restarts_of(seen)
            rows.append(
                (
                    one_line(trial.judge),
                    name,
                    found.passages,
                    found.unusable,
                    *_cells(found),
                )
            )
        rows.append(RULE)
    return Table(
        "Restarts in passages with known attempts, 95 % intervals",
        (Column("judge", "left"), Column("split", "left"), "passages", "unusable", *_COUNTS),
        rows[:-1],
        f"Found: begins within {NEAR} characters of a labelled one. False alarms: of passages "
        "without a restart, those in which one was found. Unusable: passages without a verdict, "
        "counted nowhere else.",
    )


def kind_table(trials: Sequence[Trial]) -> Table:
    """The same by kind of passage."""
    rows: list[tuple[Cell, ...]] = []
    for trial in trials:
        parts = _parts(trial.seen, lambda one: (one.split, one.kind))
        for (split, kind), seen in parts.items():
            found = restarts_of(seen)
            rows.append(
                (one_line(trial.judge), split, one_line(kind), found.passages, *_cells(found))
            )
        rows.append(RULE)
    return Table(
        "Restarts by kind of passage, 95 % intervals",
        (
            Column("judge", "left"),
            Column("split", "left"),
            Column("kind", "left"),
            "passages",
            *_COUNTS,
        ),
        rows[:-1],
    )


def _cells(found: Restarts) -> tuple[Cell, ...]:
    return (
        found.labelled,
        found.found,
        found.invented,
        found.missed,
        *(
            None if one is None else percent(one.estimate)
            for one in (found.precision, found.recall, found.false_alarms)
        ),
    )


def score_table(trials: Sequence[Trial]) -> Table | None:
    """How each judge scored, and what its verdicts took; None without a judge."""
    rows: list[tuple[Cell, ...]] = []
    for trial in trials:
        if trial.spent is None:
            continue
        scores, spent = scores_of(trial.seen), trial.spent
        rows.append(
            (
                one_line(trial.judge),
                scores.attempts if scores else 0,
                mean(scores.error) if scores else None,
                with_interval(scores.bias, "+.1f") if scores else None,
                spent.read,
                spent.written,
                None if spent.dollars is None else f"{spent.dollars:.2f}",
                None if spent.seconds is None else f"{spent.seconds:.2f}",
            )
        )
    if not rows:
        return None
    return Table(
        "Scores of 0 to 100 beside the authors', and what the verdicts took",
        (
            "judge",
            "attempts scored",
            "error",
            "bias",
            "tokens read",
            "written",
            "dollars",
            "seconds a verdict",
        ),
        rows,
        "Error: mean distance. Bias: mean difference, above 0 where the judge is the milder. "
        "Seconds: the median, several verdicts at a time.",
    )


def as_data(trials: Sequence[Trial]) -> dict[str, Any]:
    """Everything as JSON holds it."""
    return {"near": NEAR, "judges": [_trial_data(one) for one in trials]}


def _trial_data(trial: Trial) -> dict[str, Any]:
    kinds = _parts(trial.seen, lambda one: (one.split, one.kind))
    scores, spent = scores_of(trial.seen), trial.spent
    return {
        "judge": trial.judge,
        ALL: _restart_data(trial.seen),
        "splits": {
            split: _restart_data(seen)
            for split, seen in _parts(trial.seen, lambda one: one.split).items()
        },
        "kinds": [
            {"split": split, "kind": kind, **_restart_data(seen)}
            for (split, kind), seen in kinds.items()
        ],
        "scores": scores
        and {
            "attempts": scores.attempts,
            "error": _bounds(scores.error),
            "bias": _bounds(scores.bias),
        },
        "spent": spent
        and {
            "verdicts": spent.verdicts,
            "tokens_read": spent.read,
            "tokens_written": spent.written,
            "dollars": spent.dollars,
            "seconds": spent.seconds,
        },
    }


def _restart_data(seen: Sequence[Seen]) -> dict[str, Any]:
    found = restarts_of(seen)
    rates = {
        name: None if one is None else _bounds(one.estimate)
        for name, one in (
            ("precision", found.precision),
            ("recall", found.recall),
            ("false_alarms", found.false_alarms),
        )
    }
    return {
        "passages": found.passages,
        "unusable": found.unusable,
        "restarts": found.labelled,
        "found": found.found,
        "invented": found.invented,
        "missed": found.missed,
        **rates,
    }


def _bounds(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}
