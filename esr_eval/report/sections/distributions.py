"""First scores and changes of score, condition by condition."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.report.plots import CHANGE_BINS, SCORE_BINS, histogram
from esr_eval.report.section import Evidence, Paragraph, Part, Pictures, Section
from esr_eval.stats.rates import Floats
from esr_eval.text import one_line


def section(evidence: Evidence) -> Section | None:
    """Histograms, the main run's outline over the others' first scores."""
    scored = [one for one in evidence.conditions if "first_score" in one.measures]
    if not scored:
        return None
    changed = [one for one in scored if "change" in one.measures]
    firsts = [
        histogram(
            _values(one, "first_score"),
            SCORE_BINS,
            title=one_line(one.name, 44),
            xlabel="score of the first attempt",
            reference=_main(one, evidence),
        )
        for one in scored
    ]
    changes = [
        histogram(
            _values(one, "change"),
            CHANGE_BINS,
            title=one_line(one.name, 44),
            xlabel="last score minus first",
        )
        for one in changed
    ]
    without = [one_line(one.name) for one in scored if one not in changed]
    parts: list[Part] = [Pictures(firsts)]
    if changes:
        parts.append(Pictures(changes))
    if without:
        parts.append(
            Paragraph(
                f"No trial had several attempts, so no score changed, in: {'; '.join(without)}."
            )
        )
    return Section(
        id="distributions",
        title="First scores, and changes of score",
        question="How far do first attempts drift, and how far do later attempts come back?",
        answers=[_answer(scored, changed)],
        parts=parts,
        tables={"distributions": _frame(scored)},
    )


def _values(condition: Condition, key: str) -> Floats:
    return condition.trials[key].dropna().to_numpy(float)


def _main(condition: Condition, evidence: Evidence) -> Floats | None:
    found = next((one.main for one in evidence.compared if one.condition is condition), None)
    return None if found is None else _values(found, "first_score")


def _answer(scored: list[Condition], changed: list[Condition]) -> str:
    medians = "; ".join(
        f"{one_line(one.name)} {one.trials['first_score'].median():.0f}" for one in scored
    )
    said = f"Median first score: {medians}."
    if not changed:
        return said
    medians = "; ".join(
        f"{one_line(one.name)} {one.trials['change'].median():+.0f} "
        f"(n = {one.measures['change'].n})"
        for one in changed
    )
    return f"{said} Median change over multi-attempt trials: {medians}."


def _frame(scored: list[Condition]) -> pd.DataFrame:
    rows = []
    for one in scored:
        for key in ("first_score", "change"):
            values = one.trials[key].dropna()
            if len(values):
                quarters = values.quantile([0, 0.25, 0.5, 0.75, 1]).tolist()
                names = ("least", "lower_quarter", "median", "upper_quarter", "greatest")
                rows.append(
                    {"condition": one_line(one.name), "metric": key, "n": len(values)}
                    | dict(zip(names, quarters, strict=True))
                )
    return pd.DataFrame(rows)
