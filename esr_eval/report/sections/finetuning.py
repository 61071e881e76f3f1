"""Fine-tuned subjects: restarts under the boost, their cost without it, and both over the mix."""

from collections import defaultdict

from esr_eval.logs.measures import Measured
from esr_eval.report.finetuning import Boosted, Finetuning, Unboosted, finetuning_of
from esr_eval.report.finetuning_table import (
    boost_of,
    boosted_cells,
    cost_cells,
    finetuning_frame,
    first_score_cost,
    points,
)
from esr_eval.report.plots import curves
from esr_eval.report.section import Evidence, Part, Picture, Pictures, Section, Table
from esr_eval.report.text import count, percent
from esr_eval.text import one_line

Points = dict[str, list[tuple[float, Measured]]]


def section(evidence: Evidence) -> Section | None:
    """Both tables, and with several mixes the curves over them."""
    found = finetuning_of(evidence.conditions)
    if found is None:
        return None
    parts: list[Part] = [Table(*boosted_cells(found)), Table(*cost_cells(found))]
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
        against.append(f"{points(one.over_unsteered)} against its own unsteered answers")
    if one.over_base is not None:
        against.append(f"{points(one.over_base)} against the base's under the boost")
    return f"{said}; restarts {' and '.join(against)}." if against else f"{said}."


def _cost(one: Unboosted) -> str:
    restarts = one.condition.measures.get("multi_attempt")
    who = f"{one_line(one.name)}, unsteered"
    if restarts is None:
        return f"{who}: no trial held a scored attempt."
    said = f"{who}: of {count(restarts.n, 'trial')} {percent(restarts)} restart"
    if one.first_score is None:
        return f"{said}; the base's unsteered answers to the same trials are not in these logs."
    return (
        f"{said}; first scores differ from the base's by {first_score_cost(one)} over "
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
