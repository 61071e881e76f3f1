"""Fine-tuned subjects: what they do under the boost, and what it costs where nobody steers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from esr_eval.logs.conditions import Condition
from esr_eval.logs.runs import shared_trials
from esr_eval.stats.comparisons import PairedComparison, compare_pairs
from esr_eval.stats.differences import Difference, mean_difference

RESTARTS = "multi_attempt"
_COMPARED = ("main", "no_steering", "finetuned")
_MODEL = ("model", "revision", "sae", "steering_layer")
"""What a tuned subject and its base have in common."""


@dataclass(frozen=True)
class _Row:
    """One log of a tuned subject, or of the base that one is held against.

    Attributes:
        name: Who answered.
        mix: Percent self-correction of its training; None of the base, and where it is not told.
        tuned: Whether it has an adapter.
        condition: The log as one judge scored it.
    """

    name: str
    mix: float | None
    tuned: bool
    condition: Condition


@dataclass(frozen=True)
class Boosted(_Row):
    """The boost is on.

    Attributes:
        until_token: Generated token from which on the boost was off; None when it stayed on.
        over_unsteered: Restarts against its own with the boost off, on the same trials.
        over_base: Restarts against the base's under its boost, on the same trials.
    """

    until_token: int | None = None
    over_unsteered: PairedComparison | None = None
    over_base: PairedComparison | None = None


@dataclass(frozen=True)
class Unboosted(_Row):
    """Nobody steers: here training can only cost.

    Attributes:
        restarts: Restarts against the base's unsteered ones, on the same trials.
        first_score: First score minus the base's unsteered one, on the same trials.
        pairs: Trials that have a first score in both.
    """

    restarts: PairedComparison | None = None
    first_score: Difference | None = None
    pairs: int = 0


@dataclass(frozen=True)
class Finetuning:
    """The base first, then tuned subjects by mix; a boost that ended is a row of its own."""

    boosted: list[Boosted] = field(default_factory=list)
    unboosted: list[Unboosted] = field(default_factory=list)

    @property
    def rows(self) -> list[Boosted | Unboosted]:
        """All of them."""
        return [*self.boosted, *self.unboosted]


def finetuning_of(conditions: Sequence[Condition]) -> Finetuning | None:
    """Compare tuned subjects with themselves unsteered and with their base.

    Trials pair by latent, topic, seed and epoch, within one judge. Of several logs that would do,
    the one with the most trials in common is taken.

    Returns:
        None when no condition has an adapter.
    """
    known = [one for one in conditions if one.experiment and one.experiment.id in _COMPARED]
    tuned = [one for one in known if one.runtime.get("adapter")]
    if not tuned:
        return None
    bases = [one for one in known if not one.runtime.get("adapter")]
    several = len({one.judge for one in tuned}) > 1
    mixes = _mixes(tuned)
    shown = {id(one): one for one in tuned}
    for one in tuned:
        base = _partner(one, (b for b in bases if _same_side(b, one)))
        beside = _unsteered_of(base, bases) if base else None
        shown |= {id(found): found for found in (base, beside) if found}
    made = Finetuning()
    for one in sorted(shown.values(), key=lambda one: _place(one, mixes)):
        about = _Row(_name(one, mixes, several), _mix(one, mixes), _is_tuned(one), one)
        if _is_unsteered(one):
            made.unboosted.append(_unboosted(about, bases))
        else:
            made.boosted.append(_boosted(about, known, bases))
    return Finetuning(_numbered(made.boosted), _numbered(made.unboosted))


def _boosted(row: _Row, known: Sequence[Condition], bases: Sequence[Condition]) -> Boosted:
    one = row.condition
    base = _partner(one, (b for b in bases if _same_side(b, one))) if row.tuned else None
    return Boosted(
        **vars(row),
        until_token=_until(one),
        over_unsteered=_restarts(_unsteered_of(one, known), one),
        over_base=_restarts(base, one),
    )


def _unboosted(row: _Row, bases: Sequence[Condition]) -> Unboosted:
    one = row.condition
    base = _partner(one, (b for b in bases if _same_side(b, one))) if row.tuned else None
    if base is None:
        return Unboosted(**vars(row))
    before, after, latents = shared_trials(*(c.by_trial("first_score") for c in (base, one)))
    found = mean_difference(after - before, latents.tolist()) if len(latents) else None
    return Unboosted(
        **vars(row), restarts=_restarts(base, one), first_score=found, pairs=len(latents)
    )


def _restarts(first: Condition | None, second: Condition) -> PairedComparison | None:
    if first is None:
        return None
    return compare_pairs(*shared_trials(first.by_trial(RESTARTS), second.by_trial(RESTARTS)))


def _partner(one: Condition, candidates: Iterable[Condition]) -> Condition | None:
    """The candidate with the same model and judge that has the most trials in common."""
    own = set(one.by_trial("error"))
    best, most = None, 0
    for other in candidates:
        if other.judge != one.judge or _model(other) != _model(one):
            continue
        shared = len(own & set(other.by_trial("error")))
        if shared > most:
            best, most = other, shared
    return best


def _unsteered_of(one: Condition, candidates: Iterable[Condition]) -> Condition | None:
    adapter = one.runtime.get("adapter")
    same = (c for c in candidates if _is_unsteered(c) and c.runtime.get("adapter") == adapter)
    return _partner(one, same)


def _same_side(base: Condition, one: Condition) -> bool:
    """Whether the boost is on in both for as long, or off in both."""
    return (_is_unsteered(base), _until(base)) == (_is_unsteered(one), _until(one))


def _is_unsteered(one: Condition) -> bool:
    return all(sample.metadata.get("condition") == "unsteered" for sample in one.log.samples)


def _is_tuned(one: Condition) -> bool:
    return bool(one.runtime.get("adapter"))


def _until(one: Condition) -> int | None:
    until = one.log.metadata.get("until_token")
    return until if isinstance(until, int) else None


def _model(one: Condition) -> list[object]:
    return [one.runtime.get(name) for name in _MODEL]


def _mixes(tuned: Sequence[Condition]) -> dict[str, float]:
    """Percent self-correction by adapter, where a log tells it."""
    found = {}
    for one in tuned:
        facts = one.log.metadata.get("adapter")
        percent = facts.get("mix_percent") if isinstance(facts, dict) else None
        if isinstance(percent, int | float):
            found[str(one.runtime["adapter"])] = float(percent)
    return found


def _mix(one: Condition, mixes: dict[str, float]) -> float | None:
    return mixes.get(str(one.runtime.get("adapter")))


def _name(one: Condition, mixes: dict[str, float], several_judges: bool) -> str:
    parts, mix = [one.subject], _mix(one, mixes)
    if _is_tuned(one):
        # Of an adapter on this machine, its folder's own name: where it lies tells nobody else.
        own = str(one.runtime["adapter"]).rstrip("/").rpartition("/")[2].removeprefix("embedded:")
        if mix is not None:
            parts.append(f"{mix:g} %")
        elif own != one.subject:
            parts.append(own)
    return ", ".join([*parts, one.judge] if several_judges else parts)


def _place(one: Condition, mixes: dict[str, float]) -> tuple[bool, bool, float, bool, int, str]:
    mix, until = _mix(one, mixes), _until(one)
    created = one.log.header.eval.created
    return _is_tuned(one), mix is None, mix or 0.0, until is not None, until or 0, created


R = TypeVar("R", Boosted, Unboosted)


def _numbered(rows: Sequence[R]) -> list[R]:
    """Tell rows apart that have one name and one length of the boost."""
    keys = [(row.name, getattr(row, "until_token", None)) for row in rows]
    return [
        replace(row, name=f"{row.name} ({keys[: at + 1].count(key)})")
        if keys.count(key) > 1
        else row
        for at, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]
