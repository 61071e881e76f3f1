"""Fine-tuned subjects in two tables: under the boost, and what training costs without it."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
from rich.table import Table

from esr_eval.logs.measures import HOLISTIC
from esr_eval.report.finetuning import Boosted, Finetuning, Unboosted
from esr_eval.report.intervals import with_interval
from esr_eval.report.text import NONE, mean, percent
from esr_eval.stats.comparisons import PairedComparison
from esr_eval.text import one_line

IMPROVEMENT = f"{HOLISTIC}improvement"
KEYS = ("multi_attempt", "esr", "first_score", IMPROVEMENT)


class Cells(NamedTuple):
    """A table as texts.

    Attributes:
        caption: What it shows.
        columns: Heads; the first is that of the row's name.
        rows: One text for each column.
        notes: How to read it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: str


def boosted_cells(found: Finetuning) -> Cells:
    """What tuned subjects and their base do under the boost."""
    whole = any(IMPROVEMENT in one.condition.measures for one in found.boosted)
    second = ("improvement, 0-10",) if whole else ()
    return Cells(
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


def cost_cells(found: Finetuning) -> Cells:
    """What tuned subjects do when nobody steers them, against their base."""
    return Cells(
        "The cost: nobody steers",
        (
            "subject", "trials", "restarts", "first score", "restarts, less the base's",
            "first score, less the base's", "shared trials",
        ),
        [_unboosted(one) for one in found.unboosted],
        "A subject that restarts here has learned words, not noticing; a first score below the "
        "base's is an answer made worse by training.",
    )  # fmt: skip


def finetuning_tables(found: Finetuning) -> Iterator[Table]:
    """Both tables for the terminal."""
    for cells in (boosted_cells(found), cost_cells(found)):
        table = Table(title=cells.caption, caption=cells.notes)
        for at, column in enumerate(cells.columns):
            table.add_column(column, justify="right" if at else "left", overflow="fold")
        for row in cells.rows:
            table.add_row(*row)
        yield table


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
        for name, rates in _compared(one):
            if rates is not None:
                change = rates.difference
                about_rates = {"value": change.value, "low": change.low, "high": change.high}
                counts = {"n": rates.second.trials, "clusters": rates.second.clusters}
                rows.append({**about, "metric": name, **about_rates, **counts})
        if isinstance(one, Unboosted) and one.first_score is not None:
            cost = one.first_score
            values = {"value": cost.value, "low": cost.low, "high": cost.high}
            counts = {"n": one.pairs, "clusters": cost.clusters}
            rows.append({**about, "metric": "first_score_less_base", **values, **counts})
    return pd.DataFrame(rows)


def boost_of(one: Boosted | Unboosted) -> str:
    """How long the boost was on."""
    if isinstance(one, Unboosted):
        return "off"
    return "on" if one.until_token is None else f"off after {one.until_token} tokens"


def points(found: PairedComparison | None) -> str:
    """A difference of rates, such as `+19.8 points (9.4 to 32.3)`."""
    if found is None:
        return NONE
    change = found.difference
    return with_interval(change.value, change.low, change.high, "+.1f", " points", 100)


def first_score_cost(one: Unboosted) -> str:
    """First score less the base's, such as `+1.5 (0.0 to 3.0)`."""
    cost = one.first_score
    return NONE if cost is None else with_interval(cost.value, cost.low, cost.high, "+.1f")


def _compared(one: Boosted | Unboosted) -> list[tuple[str, PairedComparison | None]]:
    if isinstance(one, Unboosted):
        return [("restarts_less_base", one.restarts)]
    return [
        ("restarts_less_unsteered", one.over_unsteered),
        ("restarts_less_base", one.over_base),
    ]


def _trials(one: Boosted | Unboosted) -> str:
    found = one.condition.measures.get("multi_attempt")
    return f"{found.n:,}" if found else "0"


def _boosted(one: Boosted, whole: bool) -> tuple[str, ...]:
    found = one.condition.measures
    second = (mean(found.get(IMPROVEMENT)),) if whole else ()
    return (
        one_line(one.name),
        boost_of(one),
        _trials(one),
        percent(found.get("multi_attempt")),
        percent(found.get("esr")),
        mean(found.get("first_score")),
        *second,
        points(one.over_unsteered),
        points(one.over_base),
    )


def _unboosted(one: Unboosted) -> tuple[str, ...]:
    found = one.condition.measures
    return (
        one_line(one.name),
        _trials(one),
        percent(found.get("multi_attempt")),
        mean(found.get("first_score")),
        points(one.restarts),
        first_score_cost(one),
        f"{one.pairs:,}" if one.first_score else NONE,
    )
