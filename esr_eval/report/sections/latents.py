"""Latent by latent: first scores over strengths, and against the main run."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.report.plots import scatter
from esr_eval.report.section import Evidence, Picture, Pictures, Section
from esr_eval.report.text import count
from esr_eval.text import one_line

FEWEST = 3
"""Latents below which a scatter says nothing."""


def section(evidence: Evidence) -> Section | None:
    """A figure for every main run, and for every condition that replays one."""
    tables = [(one, _by_latent(one)) for one in evidence.of("main", "vectors", "finetuned")]
    tables = [(one, table) for one, table in tables if len(table) >= FEWEST]
    pictures = [
        scatter(
            table["strength"].to_numpy(float),
            table["first_score"].to_numpy(float),
            title=one_line(one.name, 44),
            xlabel="strength of the boost",
            ylabel="mean first score",
            noun=one.direction,
        )
        for one, table in tables
    ]
    frames = [_labelled(one, table) for one, table in tables]
    said = [
        f"{one_line(one.name)}: mean first scores of {count(len(table), one.direction)} range from "
        f"{table['first_score'].min():.0f} to {table['first_score'].max():.0f} "
        f"(middle half {table['first_score'].quantile(0.25):.0f} to "
        f"{table['first_score'].quantile(0.75):.0f})."
        for one, table in tables
    ]
    for condition, main in _replays(evidence):
        picture = _against(condition, main)
        if picture is not None:
            pictures.append(picture)
    if not pictures:
        return None
    return Section(
        id="latents",
        title="Latent by latent",
        question="Is the boost as strong for every latent, and do conditions act alike on all?",
        answers=said,
        parts=[Pictures(pictures)],
        tables={"latents": pd.concat(frames)} if frames else {},
    )


def _by_latent(condition: Condition) -> pd.DataFrame:
    known = condition.trials[condition.trials["first_score"].notna()]
    groups = known.groupby("latent", sort=True)
    return groups.agg(
        label=("label", "first"),
        strength=("strength", "mean"),
        first_score=("first_score", "mean"),
        multi_attempt=("multi_attempt", "mean"),
        trials=("first_score", "size"),
    )


def _labelled(condition: Condition, table: pd.DataFrame) -> pd.DataFrame:
    table = table.reset_index()
    table.insert(0, "condition", one_line(condition.name))
    return table


def _replays(evidence: Evidence) -> list[tuple[Condition, Condition]]:
    pairs = {one.condition.name: (one.condition, one.main) for one in evidence.compared}
    return list(pairs.values())


def _against(condition: Condition, main: Condition) -> Picture | None:
    joined = _by_latent(main)[["first_score"]].join(
        _by_latent(condition)[["first_score"]], how="inner", lsuffix="_main"
    )
    if len(joined) < FEWEST:
        return None
    return scatter(
        joined["first_score_main"].to_numpy(float),
        joined["first_score"].to_numpy(float),
        title=one_line(condition.name, 44),
        xlabel="mean first score in the main run",
        ylabel="in this condition",
        diagonal=True,
    )
