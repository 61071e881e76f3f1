"""Off-topic detectors of a discovery, by both rules."""

import pandas as pd

from esr_eval.data.arguments import RuleName as Rule
from esr_eval.detectors.discovery import RULES, DetectorReport, find_detectors
from esr_eval.logs.stored import StoredLog
from esr_eval.report.dots import Dots, Group, Key, Lane, Mark, Row
from esr_eval.report.evidence import Evidence, usable
from esr_eval.report.section import Column, Part, Section, Table, count
from esr_eval.text import one_line

ASKED = {
    "silent": "active on at most {max_matched:.0%} of matched and at least {min_mismatched:.0%} of "
    "mismatched pairs",
    "separability": "the {top} of greatest AUC between mismatched and matched pairs",
}


def detector_table(report: DetectorReport, rule: Rule, most: int | None = None) -> Table:
    """The latents that a rule finds; where it finds none, those that come closest.

    Args:
        report: What was found.
        rule: By which rule.
        most: Rows at most.
    """
    found = report.sets[rule]
    settings = report.model_dump(include={"max_matched", "min_mismatched", "top"})
    numbers = ("matched", "mismatched", "max matched", "max mismatched", "AUC", "fires")
    latents = found.detectors or found.nearest
    more = 0 if most is None else max(0, len(latents) - most)
    return Table(
        f"{rule}: {ASKED[rule].format(**settings)}",
        (Column("latent"), *numbers, Column("label", "left")),
        [
            (
                str(one.latent),
                f"{one.matched_active:.0%}",
                f"{one.mismatched_active:.0%}",
                f"{one.matched_max:.2f}",
                f"{one.mismatched_max:.2f}",
                f"{one.auc:.3f}",
                f"{one.rate:.2%}",
                one_line(one.label or ""),
            )
            for one in latents[:most]
        ],
        _caption(report, rule) + (f" {more} more are in the CSV file." if more else ""),
        faint=not found.detectors,
    )


def _caption(report: DetectorReport, rule: Rule) -> str:
    found = report.sets[rule]
    count = len(found.detectors)
    said = (
        f"{count} of {report.n_latents} latents"
        if count
        else f"No latent of {report.n_latents}; shown are those that come closest"
    )
    missing = f", {report.missing} without a reading left out" if report.missing else ""
    return (
        f"{said}. Were task and answer indifferent to the latents, about "
        f"{found.expected_by_chance:.2g} would be found. {report.pairs} matched and as many "
        f"mismatched pairs{missing}; {report.positions} positions at layer {report.layer} of "
        f"{report.runtime.subject}. Columns: share of pairs with the latent active, mean of the "
        "pairs' maxima, share of positions at which it fires."
    )


MOST_ROWS = 40


def detectors_section(evidence: Evidence) -> Section | None:
    """What each discovery log found; a log without its activations says so."""
    logs = evidence.logs_of("detectors")
    if not logs:
        return None
    answers: list[str] = []
    parts: list[Part] = []
    figures: list[Part] = []
    verdicts: list[str] = []
    rows: list[dict[str, object]] = []
    for log, report in usable(logs, find_detectors, answers):
        figures += [figure] if (figure := _figure(report)) is not None else []
        silent = report.sets["silent"]
        verdicts.append(
            f"{count(len(silent.detectors), 'latent')} of {report.n_latents:,} fall silent on "
            f"answers to their task and not on others; chance alone makes "
            f"{silent.expected_by_chance:,.1f}"
        )
        for rule in RULES:
            answers.append(_answer(log, report, rule))
            parts.append(detector_table(report, rule, MOST_ROWS))
            rows += [
                {"log": log.file, "rule": rule, **one.model_dump()}
                for one in report.sets[rule].detectors
            ]
    return Section(
        id="detectors",
        title="Off-topic detectors",
        question="Which latents are silent while an answer fits its task and active otherwise?",
        answers=answers,
        verdict="; ".join(verdicts),
        figures=figures,
        parts=parts,
        tables={"detectors": pd.DataFrame(rows)} if rows else {},
        experiment="detectors",
    )


MOST_DRAWN = 10
_SIDES = (
    Key("ring", "of answers to their own task"),
    Key("full", "of answers to another task"),
)


def _figure(report: DetectorReport) -> Dots | None:
    """On how many matched and mismatched pairs the first detectors are active."""
    rows = []
    for one in report.sets["silent"].detectors[:MOST_DRAWN]:
        values = (100 * one.matched_active, 100 * one.mismatched_active)
        marks = [
            Mark(key.shape, value, None, None, f"{value:.0f} % {key.meaning}")
            for key, value in zip(_SIDES, values, strict=True)
        ]
        name = f"latent {one.latent}" + (f", {one_line(one.label, 60)}" if one.label else "")
        said = " against ".join(f"{value:.0f} %" for value in reversed(values))
        rows.append(Row(name, "", [Lane("active on", marks, said)]))
    title = "Latents silent on matched pairs and active on mismatched ones"
    return Dots(title, "%", [Group("", rows)], list(_SIDES), (0.0, 100.0)) if rows else None


def _answer(log: StoredLog, report: DetectorReport, rule: Rule) -> str:
    found = report.sets[rule]
    settings = (
        f"active on at most {100 * report.max_matched:.0f} % of matched and at least "
        f"{100 * report.min_mismatched:.0f} % of mismatched pairs"
        if rule == "silent"
        else f"the {report.top} of greatest AUC"
    )
    missing = f"; {count(report.missing, 'sample')} without a reading" if report.missing else ""
    return (
        f"{one_line(log.condition)}, {one_line(report.runtime.subject)}, layer {report.layer}: "
        f"{count(len(found.detectors), 'detector')} of {report.n_latents:,} latents by the rule "
        f"“{rule}” ({settings}), over {count(report.pairs, 'pair')} of each kind{missing}; about "
        f"{found.expected_by_chance:,.1f} would be found if task and answer made no difference."
    )
