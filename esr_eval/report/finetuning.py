"""Fine-tuned subjects: restarts under the boost, their cost without it, and both over the mix."""

from collections import defaultdict

import pandas as pd

from esr_eval.logs.measures import HOLISTIC, Measured
from esr_eval.report.adapters import Boosted, Finetuning, Unboosted, finetuning_of
from esr_eval.report.evidence import Evidence
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
from esr_eval.stats.comparisons import PairedComparison
from esr_eval.text import one_line

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


def _change(found: PairedComparison | None) -> str:
    return points(found.difference if found else None)


def _compared(one: Boosted | Unboosted) -> list[tuple[str, PairedComparison | None]]:
    if isinstance(one, Unboosted):
        return [("restarts_less_base", one.restarts)]
    return [
        ("restarts_less_unsteered", one.over_unsteered),
        ("restarts_less_base", one.over_base),
    ]


def _boosted(one: Boosted, whole: bool) -> tuple[str, ...]:
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
        _change(one.over_unsteered),
        _change(one.over_base),
    )


def _unboosted(one: Unboosted) -> tuple[str, ...]:
    found = one.condition.measures
    return (
        one_line(one.name),
        trials(found.get("multi_attempt")),
        percent(found.get("multi_attempt")),
        mean(found.get("first_score")),
        _change(one.restarts),
        with_interval(one.first_score, "+.1f"),
        f"{one.pairs:,}" if one.first_score else NONE,
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
    return Section(
        id="finetuning",
        title="Fine-tuning",
        question="Does training on self-correction make the subject restart under a boost, and "
        "what does it cost where nobody steers?",
        answers=answers,
        parts=parts,
        tables={"finetuning": finetuning_frame(found)},
        experiment="finetuned",
    )


def _under_boost(one: Boosted) -> str:
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
        against.append(f"{_change(one.over_unsteered)} against its own unsteered answers")
    if one.over_base is not None:
        against.append(f"{_change(one.over_base)} against the base's under the boost")
    return f"{said}; restarts {' and '.join(against)}." if against else f"{said}."


def _cost(one: Unboosted) -> str:
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
        f"{count(one.pairs, 'shared trial')}."
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
        if isinstance(one, Unboosted) and one.first_score is not None:
            cost = one.first_score
            value = Measured(cost.value, cost.low, cost.high, one.pairs, cost.clusters)
            costs[key]["first score, less the base's"].append((one.mix, value))
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
