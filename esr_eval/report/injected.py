"""Injected thoughts: detection by layer and dose, corrected, and beside starting over."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from inspect_ai.scorer import Score

from esr_eval.data.thoughts import Probe
from esr_eval.logs.conditions import Condition
from esr_eval.logs.stored import StoredLog
from esr_eval.report.evidence import Evidence, run_names
from esr_eval.report.section import (
    NONE,
    Part,
    Section,
    Table,
    count,
    p_value,
    percent,
    points,
    with_interval,
)
from esr_eval.scorers.introspection import RATES, SIGNAL
from esr_eval.stats.detection import Detection, detection
from esr_eval.stats.means import difference_of_means
from esr_eval.stats.power import ASSUMED_ICC, Design, least_change
from esr_eval.stats.rates import Estimate, Rate, intraclass_correlation, rate
from esr_eval.text import one_line

EXPERIMENT = "injected_thought"
SCORER = "introspection"
FEWEST = 4
"""Concepts from which ranks of them are compared."""
_CLOSE = 1e-6
"""Part by which strengths that are the same may differ: logs hold them as decimals."""
CANNOT_TELL = (
    "A claim is a coherent yes before the concept is mentioned. Corrected: claims beyond those "
    "that the injection's effect on unrelated questions, whose answer is no, explains. Bias above "
    "0: tends to say no. All intervals respect the clustering by concept; those of d', bias and "
    "the corrected rate are rather too wide. Not even a corrected rate above 0 shows that a model "
    "notices anything: an injection may act on questions about thoughts in ways of its own."
)


@dataclass(frozen=True)
class Cell:
    """Answers that were injected in one way, beside their controls.

    Attributes:
        run: Name of the run.
        layer: Where it was injected.
        dose: How strongly, as it was asked for.
        found: Detection.
        coherent: Share of coherent answers under injection.
        named: Share that claims a thought and names the concept.
        named_control: The same without injection: names by chance.
        right: Yes to unrelated questions whose answer is yes, under injection.
        right_control: The same without.
        concepts: How many.
    """

    run: str
    layer: int
    dose: str
    found: Detection
    coherent: Rate | None
    named: Rate | None
    named_control: Rate | None
    right: Rate | None
    right_control: Rate | None
    concepts: int


def injected_section(evidence: Evidence) -> Section | None:
    """What the runs with injected thoughts came to."""
    runs = [(log, one) for log in evidence.logs_of(EXPERIMENT) if len(one := probes_of(log))]
    if not runs:
        return None
    cells: list[Cell] = []
    answers: list[str] = []
    parts: list[Part] = []
    tables: dict[str, pd.DataFrame] = {}
    linked: list[pd.DataFrame] = []
    for name, (log, rows) in zip(run_names([log for log, _ in runs]), runs, strict=True):
        own = cells_of(name, rows)
        cells += own
        answers += [sentence(one) for one in own]
        parts.append(cells_table(own))
        if told := asked_table(name, rows):
            parts.append(told)
        answers += reach(name, rows)
        main = _main_of(log, evidence)
        link = None if main is None else linked_latents(rows, main)
        if link is not None and main is not None:
            answers.append(link_sentence(name, one_line(main.name), link))
            parts.append(link_table(name, one_line(main.name), link))
            linked.append(link.assign(run=name, main=main.name))
    if cells:
        tables["injected_thoughts"] = cells_frame(cells)
    if linked:
        tables["injected_thoughts_by_latent"] = pd.concat(linked)
    return Section(
        id="injected",
        title="Injected thoughts",
        question="Does the model notice an injected thought, beyond saying yes more readily?",
        answers=answers or [f"{count(len(runs), 'log')} without a score yet."],
        parts=parts,
        tables=tables,
        experiment=EXPERIMENT,
    )


def probes_of(log: StoredLog) -> pd.DataFrame:
    """A log's scored questions, a row each: what was asked, and its numbers.

    Samples that failed, or whose latent was never found, have no row with numbers.
    """
    rows: list[dict[str, Any]] = []
    for sample in log.samples:
        score = _score(sample.scores or {})
        if score is None or not isinstance(score.value, dict):
            continue
        probe = Probe.model_validate(sample.metadata)
        if probe.pending:
            continue
        about = probe.model_dump(
            include={"latent", "label", "kind", "wording", "form", "turn", "dose", "layer"}
            | {"strength", "condition", "vector"}
        )
        rows.append(about | {key: _number(score.value.get(key)) for key in RATES})
    return pd.DataFrame(rows)


def cells_of(name: str, rows: pd.DataFrame) -> list[Cell]:
    """Each way to inject, beside the controls of the same concepts."""
    injected = rows[rows["condition"] == "steered"]
    controls = rows[rows["condition"] == "unsteered"]
    cells = []
    for way, own in injected.groupby(["layer", "dose"], sort=False):
        layer, dose = str(way[0]), str(way[1])
        alike = controls[controls["latent"].isin(own["latent"])]
        both = pd.concat([own, alike])
        share = {key: _rate(both, key) for key in RATES}
        cells.append(
            Cell(
                run=name,
                layer=int(float(layer)),
                dose=dose,
                found=detection_of(both),
                coherent=share["coherent"],
                named=share["named"],
                named_control=share["named_control"],
                right=share["right"],
                right_control=share["right_control"],
                concepts=int(own["latent"].nunique()),
            )
        )
    return cells


def detection_of(rows: pd.DataFrame) -> Detection:
    """Detection of some questions."""
    hits, alarms, affirmed, control = (rows[key].tolist() for key in SIGNAL)
    return detection(hits, alarms, affirmed, control, rows["latent"].tolist())


def cells_table(cells: Sequence[Cell]) -> Table:
    """One row for each way to inject."""
    return Table(
        f"Injected thoughts: {one_line(cells[0].run)}" if cells else "Injected thoughts",
        (
            "layer, dose",
            "concepts",
            "coherent",
            "claims",
            "false positives",
            "names it",
            "by chance",
            "yes to a no",
            "without injection",
            "d'",
            "bias",
            "corrected",
        ),
        [
            (
                f"{one.layer}, {one_line(one.dose)}",
                one.concepts,
                _share(one.coherent),
                _share(one.found.hits),
                _share(one.found.alarms),
                _share(one.named),
                _share(one.named_control),
                _share(one.found.affirmed),
                _share(one.found.affirmed_control),
                _plain(one.found.d_prime),
                _plain(one.found.bias),
                points(one.found.corrected),
            )
            for one in cells
        ],
        CANNOT_TELL,
    )


def asked_table(name: str, rows: pd.DataFrame) -> Table | None:
    """Detection by wording and form of the answer, all ways to inject together."""
    asked = rows[rows["kind"] == "thought"]
    told: list[tuple[str | int | None, ...]] = []
    for key, what in (("wording", "wording"), ("form", "answer")):
        if asked[key].nunique() < 2:
            continue
        for value, own in asked.groupby(key):
            found = detection_of(own)
            told.append(
                (
                    f"{what} {value}",
                    len(own),
                    _share(found.hits),
                    _share(found.alarms),
                    _plain(found.d_prime),
                    _plain(found.bias),
                )
            )
    if not told:
        return None
    return Table(
        f"The same by how it was asked: {one_line(name)}",
        ("", "answers", "claims", "false positives", "d'", "bias"),
        told,
        "All layers and doses together, injected and not.",
    )


def sentence(cell: Cell) -> str:
    """What came out of one way to inject."""
    found = cell.found
    said = f"{one_line(cell.run)}, layer {cell.layer}, {one_line(cell.dose)}: "
    if found.hits is None or found.alarms is None:
        return f"{said}no judged answer on one of the two sides, so there is no detection to tell."
    said += (
        f"{count(found.hits.hits, 'answer')} of {found.hits.trials} claim a thought "
        f"({_share(found.hits)}), {found.alarms.hits} of {found.alarms.trials} do without "
        f"injection ({_share(found.alarms)}): d' {_plain(found.d_prime)}"
    )
    if cell.named is not None:
        said += f"; {cell.named.hits} name the concept"
    if found.corrected is None or found.affirmed is None or found.affirmed_control is None:
        return f"{said}. No unrelated questions were asked, so nothing can be corrected."
    said += (
        f". Unrelated questions whose answer is no get a yes from {_share(found.affirmed)} "
        f"against {_share(found.affirmed_control)}; beyond that shift {points(found.corrected)}: "
    )
    low, high = found.corrected.low, found.corrected.high
    if low is not None and low > 0:
        return f"{said}more claims than the shift explains."
    if high is not None and high < 0:
        return f"{said}fewer claims than the shift explains."
    return f"{said}no detection that the shift does not explain."


def reach(name: str, rows: pd.DataFrame) -> list[str]:
    """Which rise over the false positives so many trials would have shown."""
    alarms = _rate(rows, "false_positive")
    if alarms is None or alarms.clusters < 2:
        return []
    each = alarms.trials / alarms.clusters
    known = rows.loc[rows["false_positive"].notna(), ["latent", "false_positive"]]
    icc = intraclass_correlation(
        known["false_positive"].to_numpy(float), known["latent"].to_numpy()
    )
    half = 0.5 / alarms.trials
    base = min(max(alarms.estimate.value, half), 1 - half)
    clustering = ASSUMED_ICC if icc is None else min(max(icc, 0.0), 0.99)
    design = Design(base, base / 2, icc=clustering, trials_per_latent=each)
    least = least_change(design, alarms.clusters, rise=True)
    seen = "no rise at all" if least is None else f"claims of {100 * least:.0f} % or more"
    return [
        f"{one_line(name)}: over false positives of {_share(alarms)}, "
        f"{count(alarms.clusters, 'concept')} of {each:.0f} trials each show, for each layer and "
        f"dose, {seen} with a power of 80 %; what lies between they cannot show."
    ]


def linked_latents(rows: pd.DataFrame, main: Condition) -> pd.DataFrame | None:
    """Per latent, claims under injection and starting over under the same boost.

    Args:
        rows: Of a run with injected thoughts.
        main: The main run.

    Returns:
        None where no latent has the same strength in both.
    """
    # The numbers of plain vectors are no latents'.
    asked = rows[rows["detected"].notna() & rows["vector"].isna()]
    found = []
    for latent, own in asked.groupby("latent"):
        trials = main.trials[
            (main.trials["latent"] == latent) & main.trials["multi_attempt"].notna()
        ]
        strengths = trials["strength"].to_numpy(float)
        if not len(strengths):
            continue
        alike = own[np.isclose(own["strength"], strengths[0], rtol=_CLOSE, atol=0.0)]
        if not len(alike):
            continue
        found.append(
            {
                "latent": int(str(latent)),
                "label": str(alike["label"].iloc[0]),
                "strength": float(strengths[0]),
                "asked": len(alike),
                "claims": float(alike["detected"].mean()),
                "named": float(alike["named"].mean()),
                "trials": len(trials),
                "starts_over": float(trials["multi_attempt"].mean()),
                "esr": float(trials["esr"].mean()),
            }
        )
    return pd.DataFrame(found) if found else None


def link_sentence(name: str, main: str, link: pd.DataFrame) -> str:
    """Whether latents that are reported also make the model start over."""
    from scipy.stats import spearmanr

    said = (
        f"{one_line(name)} beside {main}: {count(len(link), 'latent')} injected at the strength "
        "of the boost there"
    )
    varied = link["claims"].nunique() > 1 and link["starts_over"].nunique() > 1
    if len(link) < FEWEST or not varied:
        why = "too few" if len(link) < FEWEST else "all alike in one of the two"
        return f"{said}; whether those that are reported also start over cannot be told ({why})."
    ranks = spearmanr(link["claims"], link["starts_over"])
    said += (
        f"; claims and restarts of a latent have a rank correlation of {ranks.statistic:+.2f} "
        f"(p {_test(float(ranks.pvalue))})"
    )
    over = link["starts_over"] > 0
    if min(over.sum(), (~over).sum()) < 2:
        return f"{said}."
    first, second = link.loc[~over], link.loc[over]
    change = difference_of_means(
        first["claims"].to_numpy(float),
        _names(first["latent"]),
        second["claims"].to_numpy(float),
        _names(second["latent"]),
    )
    return (
        f"{said}; latents that make it start over are reported {points(change)} more often than "
        "the others."
    )


def link_table(name: str, main: str, link: pd.DataFrame) -> Table:
    """One row for each latent that both runs have at the same strength."""
    return Table(
        f"Reported, and started over: {one_line(name)} beside {main}",
        ("latent", "label", "strength", "claims", "names it", "of", "starts over", "ESR", "of"),
        [
            (
                str(one["latent"]),
                one_line(str(one["label"])),
                f"{one['strength']:.4g}",
                f"{100 * one['claims']:.0f} %",
                f"{100 * one['named']:.0f} %",
                int(one["asked"]),
                f"{100 * one['starts_over']:.0f} %",
                f"{100 * one['esr']:.0f} %",
                int(one["trials"]),
            )
            for one in link.sort_values("claims", ascending=False).to_dict("records")
        ],
        "Starts over: share of main trials with several attempts. The two are asked in different "
        "conversations: what pairs them is the latent and its strength.",
    )


def cells_frame(cells: Iterable[Cell]) -> pd.DataFrame:
    """One line for each number."""
    rows: list[dict[str, object]] = []
    for one in cells:
        about = {"run": one.run, "layer": one.layer, "dose": one.dose, "concepts": one.concepts}
        shares = {
            "claims": one.found.hits,
            "false_positives": one.found.alarms,
            "affirmed": one.found.affirmed,
            "affirmed_control": one.found.affirmed_control,
            "coherent": one.coherent,
            "named": one.named,
            "named_control": one.named_control,
            "right": one.right,
            "right_control": one.right_control,
        }
        numbers = {
            "d_prime": one.found.d_prime,
            "bias": one.found.bias,
            "shift": one.found.shift,
            "explained": one.found.explained,
            "corrected": one.found.corrected,
        }
        found = {key: share.estimate for key, share in shares.items() if share is not None}
        for key, value in {**found, **numbers}.items():
            if value is None:
                continue
            share = shares.get(key)
            rows.append(
                {
                    **about,
                    "metric": key,
                    "value": value.value,
                    "low": value.low,
                    "high": value.high,
                    "n": share.trials if share is not None else None,
                }
            )
    return pd.DataFrame(rows, dtype=object)


def _main_of(log: StoredLog, evidence: Evidence) -> Condition | None:
    """The main run that was replayed, or else the first of the same subject."""
    replayed = log.metadata.get("replay")
    source = replayed.get("eval_id") if isinstance(replayed, dict) else None
    mains = [one for one in evidence.of("esr") if one.subject == log.subject]
    named = [one for one in mains if one.log.header.eval.eval_id == source]
    return next(iter(named or mains), None)


def _score(scores: dict[str, Score]) -> Score | None:
    return next((one for name, one in scores.items() if name.rpartition("/")[2] == SCORER), None)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _rate(rows: pd.DataFrame, key: str) -> Rate | None:
    return rate(rows[key].to_numpy(float), rows["latent"].to_numpy())


def _names(latents: "pd.Series[Any]") -> list[Hashable]:
    return [str(one) for one in latents]


def _share(found: Rate | None) -> str:
    return NONE if found is None else percent(found.estimate)


def _plain(found: Estimate | None) -> str:
    return with_interval(found, ".2f")


def _test(value: float) -> str:
    told = p_value(value)
    return told if told.startswith("<") else f"= {told}"
