"""Fine-tuned subjects: restarts under the boost, their cost without it, and both over the mix."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from esr_eval.logs.conditions import Condition, shared_trials
from esr_eval.logs.measures import HOLISTIC, Measured
from esr_eval.report.evidence import Evidence, most_shared
from esr_eval.report.overview import rates_figure
from esr_eval.report.plots import curves
from esr_eval.report.section import (
    NONE,
    Part,
    Picture,
    Pictures,
    Section,
    Table,
    count,
    mean,
    percent,
    points,
    trials,
    with_interval,
)
from esr_eval.stats.comparisons import compare_pairs
from esr_eval.stats.means import mean_difference
from esr_eval.text import numbered, one_line

RESTARTS = "multi_attempt"
_COMPARED = ("esr", "no_steering", "finetuned")
_MODEL = ("model", "revision", "sae", "steering_layer")
"""What a tuned subject and its base have in common."""


@dataclass(frozen=True)
class Row:
    """One log of a tuned subject, or of the base that one is held against.

    Attributes:
        condition: The log as one judge scored it.
        name: Who answered.
        mix: Percent self-correction of its training; None of the base, and where it is not told.
        tuned: Whether it has an adapter.
        boosted: Whether the boost is on; where nobody steers, training can only cost.
        until_token: Generated token from which on the boost was off; None when it stayed on.
        over_unsteered: Under a boost: restarts less its own with the boost off, same trials.
        over_base: Restarts less the base's with the boost alike, same trials.
        first_score: Unsteered: first score less the base's, same trials.
    """

    condition: Condition
    name: str
    mix: float | None
    tuned: bool
    boosted: bool
    until_token: int | None
    over_unsteered: Measured | None = None
    over_base: Measured | None = None
    first_score: Measured | None = None


@dataclass(frozen=True)
class Finetuning:
    """The base first, then tuned subjects by mix; a boost that ended is a row of its own."""

    boosted: list[Row]
    unboosted: list[Row]

    @property
    def rows(self) -> list[Row]:
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
    rows = []
    for one in sorted(shown.values(), key=lambda one: _place(one, mixes)):
        base = _partner(one, (b for b in bases if _same_side(b, one))) if _is_tuned(one) else None
        boosted = not _is_unsteered(one)
        row = Row(
            condition=one,
            name=_name(one, mixes, several),
            mix=_mix(one, mixes),
            tuned=_is_tuned(one),
            boosted=boosted,
            until_token=_until(one) if boosted else None,
            over_unsteered=_restarts(_unsteered_of(one, known), one) if boosted else None,
            over_base=_restarts(base, one),
            first_score=None if boosted else _first_score(base, one),
        )
        rows.append(row)
    return Finetuning(
        _numbered([row for row in rows if row.boosted]),
        _numbered([row for row in rows if not row.boosted]),
    )


def _restarts(first: Condition | None, second: Condition) -> Measured | None:
    if first is None:
        return None
    found = compare_pairs(*shared_trials(first.by_trial(RESTARTS), second.by_trial(RESTARTS)))
    if found is None:
        return None
    change, over = found.difference, found.second
    return Measured(change.value, change.low, change.high, over.trials, over.clusters)


def _first_score(base: Condition | None, one: Condition) -> Measured | None:
    if base is None:
        return None
    before, after, latents = shared_trials(*(c.by_trial("first_score") for c in (base, one)))
    if not len(latents):
        return None
    found = mean_difference(after - before, latents.tolist())
    return Measured(found.value, found.low, found.high, len(latents), found.clusters)


def _partner(one: Condition, candidates: Iterable[Condition]) -> Condition | None:
    """The candidate with the same model and judge that has the most trials in common."""
    alike = (c for c in candidates if c.judge == one.judge and _model(c) == _model(one))
    return most_shared(one, alike)


def _unsteered_of(one: Condition, candidates: Iterable[Condition]) -> Condition | None:
    adapter = one.runtime.get("adapter")
    same = (c for c in candidates if _is_unsteered(c) and c.runtime.get("adapter") == adapter)
    return _partner(one, same)


def _same_side(base: Condition, one: Condition) -> bool:
    """Whether the boost is on in both for as long, or off in both."""
    return (_is_unsteered(base), _until(base)) == (_is_unsteered(one), _until(one))


def _is_unsteered(one: Condition) -> bool:
    return one.steering == "unsteered"


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


def _numbered(rows: Sequence[Row]) -> list[Row]:
    """Tell rows apart that have one name and one length of the boost."""
    names = numbered([row.name for row in rows], [(row.name, row.until_token) for row in rows])
    return [replace(row, name=name) for row, name in zip(rows, names, strict=True)]


IMPROVEMENT = f"{HOLISTIC}improvement"
KEYS = ("multi_attempt", "esr", "first_score", IMPROVEMENT)


def boosted_table(found: Finetuning) -> Table:
    """What tuned subjects and their base do under the boost."""
    whole = any(IMPROVEMENT in one.condition.measures for one in found.boosted)
    second = ("improvement, 0-10",) if whole else ()
    return Table(
        "Under the boost",
        (
            "subject", "boost", "trials", "restarts", "ESR", "first score", *second,
            "restarts, less its own unsteered", "restarts, less the base's",
        ),
        [_boosted(one, whole) for one in found.boosted],
        "Restarts: answers with several attempts. "
        + ("Improvement: of the response as a whole (the second view). " if whole else "")
        + "Differences are over the trials that both have; 95 % intervals are clustered by latent.",
    )  # fmt: skip


def cost_table(found: Finetuning) -> Table:
    """What tuned subjects do when nobody steers them, against their base."""
    return Table(
        "The cost: nobody steers",
        (
            "subject", "trials", "restarts", "first score", "restarts, less the base's",
            "first score, less the base's", "shared trials",
        ),
        [_unboosted(one) for one in found.unboosted],
        "A subject that restarts here has learned words, not noticing; a first score below the "
        "base's is an answer made worse by training.",
    )  # fmt: skip


def finetuning_frame(found: Finetuning) -> pd.DataFrame:
    """Every number of both tables, one a line."""
    rows: list[dict[str, object]] = []
    for one in found.rows:
        about: dict[str, object] = {
            "subject": one_line(one.name),
            "mix_percent": one.mix,
            "boost": boost_of(one),
        }
        for key in KEYS:
            if key in one.condition.measures:
                rows.append({**about, "metric": key, **one.condition.measures[key]._asdict()})
        for name, change in (
            ("restarts_less_unsteered", one.over_unsteered),
            ("restarts_less_base", one.over_base),
            ("first_score_less_base", one.first_score),
        ):
            if change is not None:
                rows.append({**about, "metric": name, **change._asdict()})
    return pd.DataFrame(rows)


def boost_of(one: Row) -> str:
    """How long the boost was on."""
    if not one.boosted:
        return "off"
    return "on" if one.until_token is None else f"off after {one.until_token} tokens"


def _boosted(one: Row, whole: bool) -> tuple[str, ...]:
    found = one.condition.measures
    second = (mean(found.get(IMPROVEMENT)),) if whole else ()
    return (
        one_line(one.name),
        boost_of(one),
        trials(found.get("multi_attempt")),
        percent(found.get("multi_attempt")),
        percent(found.get("esr")),
        mean(found.get("first_score")),
        *second,
        points(one.over_unsteered),
        points(one.over_base),
    )


def _unboosted(one: Row) -> tuple[str, ...]:
    found = one.condition.measures
    return (
        one_line(one.name),
        trials(found.get("multi_attempt")),
        percent(found.get("multi_attempt")),
        mean(found.get("first_score")),
        points(one.over_base),
        with_interval(one.first_score, "+.1f"),
        f"{one.first_score.n:,}" if one.first_score else NONE,
    )


Points = dict[str, list[tuple[float, Measured]]]


def finetuning_section(evidence: Evidence) -> Section | None:
    """Both tables, and with several mixes the curves over them."""
    found = finetuning_of(evidence.conditions)
    if found is None:
        return None
    parts: list[Part] = [boosted_table(found), cost_table(found)]
    if pictures := _pictures(found):
        parts.append(Pictures(pictures))
    answers = [_under_boost(one) for one in found.boosted if one.tuned]
    answers += [_cost(one) for one in found.unboosted if one.tuned]
    figure = rates_figure([one.condition for one in found.rows], "Base and tuned subject")
    return Section(
        id="finetuning",
        title="Fine-tuning",
        question="Does training on self-correction make the subject restart under a boost, and "
        "what does it cost where nobody steers?",
        answers=answers,
        verdict=_verdict(found),
        figures=[] if figure is None else [figure],
        parts=parts,
        tables={"finetuning": finetuning_frame(found)},
        experiment="finetuned",
    )


def _verdict(found: Finetuning) -> str:
    """Restarts of tuned subjects under the boost, beside their base's and without a boost."""

    def rates(rows: Sequence[Row], tuned: bool) -> str:
        known = (one.condition.measures.get(RESTARTS) for one in rows if one.tuned == tuned)
        values = [100 * one.value for one in known if one is not None]
        low, high = (f"{end(values):.1f}" if values else NONE for end in (min, max))
        return f"{low} %" if low == high else f"{low} to {high} %"

    said = f"Under the boost {rates(found.boosted, True)} of answers start over"
    if any(not one.tuned for one in found.boosted):
        said += f", of the base's {rates(found.boosted, False)}"
    if any(one.tuned for one in found.unboosted):
        said += f"; without a boost {rates(found.unboosted, True)}"
    return f"{said}."


def _under_boost(one: Row) -> str:
    found = one.condition.measures
    restarts = found.get("multi_attempt")
    boost = "the boost on" if one.until_token is None else f"the boost {boost_of(one)}"
    who = f"{one_line(one.name)}, {boost}"
    if restarts is None:
        return f"{who}: no trial held a scored attempt."
    said = (
        f"{who}: of {count(restarts.n, 'trial')} {percent(restarts)} restart and "
        f"{percent(found.get('esr'))} end better than they began"
    )
    against = []
    if one.over_unsteered is not None:
        against.append(f"{points(one.over_unsteered)} against its own unsteered answers")
    if one.over_base is not None:
        against.append(f"{points(one.over_base)} against the base's under the boost")
    return f"{said}; restarts {' and '.join(against)}." if against else f"{said}."


def _cost(one: Row) -> str:
    restarts = one.condition.measures.get("multi_attempt")
    who = f"{one_line(one.name)}, unsteered"
    if restarts is None:
        return f"{who}: no trial held a scored attempt."
    said = f"{who}: of {count(restarts.n, 'trial')} {percent(restarts)} restart"
    if one.first_score is None:
        return f"{said}; the base's unsteered answers to the same trials are not in these logs."
    cost = with_interval(one.first_score, "+.1f")
    return (
        f"{said}; first scores differ from the base's by {cost} over "
        f"{count(one.first_score.n, 'shared trial')}."
    )


def _pictures(found: Finetuning) -> list[Picture]:
    """For each subject and judge with several mixes: restarts, and the cost, over the mix."""
    rates: dict[tuple[str, str], Points] = defaultdict(lambda: defaultdict(list))
    costs: dict[tuple[str, str], Points] = defaultdict(lambda: defaultdict(list))
    for one in found.rows:
        measured = one.condition.measures.get("multi_attempt")
        if one.mix is None or measured is None:
            continue
        key = (one.condition.subject, one.condition.judge)
        rates[key][f"boost {boost_of(one)}"].append((one.mix, measured))
        if one.first_score is not None:
            costs[key]["first score, less the base's"].append((one.mix, one.first_score))
    made: list[Picture] = []
    xlabel = "self-correction in training, %"
    for key, series in rates.items():
        if len({mix for line in series.values() for mix, _ in line}) < 2:
            continue
        subject = one_line(key[0], 40)
        made.append(
            curves(
                series,
                title=f"{subject}: restarts",
                xlabel=xlabel,
                ylabel="restarts, % of trials",
                scale=100,
            )
        )
        if key in costs:
            made.append(
                curves(
                    costs[key],
                    title=f"{subject}: cost without a boost",
                    xlabel=xlabel,
                    ylabel="first score, less the base's",
                    signed=True,
                )
            )
    return made
