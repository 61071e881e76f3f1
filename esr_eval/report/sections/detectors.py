"""Off-topic detectors of a discovery, by both rules."""

import pandas as pd

from esr_eval.detectors.discovery import find_detectors
from esr_eval.detectors.report import RULES, DetectorReport, Rule
from esr_eval.errors import EsrError
from esr_eval.logs.stored import StoredLog
from esr_eval.report.detector_table import figures
from esr_eval.report.section import Evidence, Part, Section, Table, unusable
from esr_eval.report.text import NONE, count
from esr_eval.text import one_line

MOST_ROWS = 40
RULE_TITLES: dict[Rule, str] = {
    "silent": "silent on matched pairs, active on mismatched",
    "separability": "greatest AUC between mismatched and matched",
}


def section(evidence: Evidence) -> Section | None:
    """What each discovery log found; a log without its activations says so."""
    logs = evidence.logs_of("detectors")
    if not logs:
        return None
    answers: list[str] = []
    parts: list[Part] = []
    rows: list[dict[str, object]] = []
    for log in logs:
        try:
            report = find_detectors(log.path)
        except EsrError as error:
            answers.append(unusable(log, error))
            continue
        for rule in RULES:
            answers.append(_answer(log, report, rule))
            parts.append(_table(report, rule))
            rows += [
                {"log": log.file, "rule": rule, **one.model_dump()}
                for one in report.sets[rule].detectors
            ]
    return Section(
        id="detectors",
        title="Off-topic detectors",
        question="Which latents are silent while an answer fits its task and active otherwise?",
        answers=answers,
        parts=parts,
        tables={"detectors": pd.DataFrame(rows)} if rows else {},
        experiment="detectors",
    )


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


def _table(report: DetectorReport, rule: Rule) -> Table:
    found = report.sets[rule]
    latents = found.detectors or found.nearest
    title = f"{rule}: {RULE_TITLES[rule]}"
    if not found.detectors:
        title += " (none is; these come closest)"
    more = len(latents) - MOST_ROWS
    return Table(
        title,
        (
            "latent", "label", "active matched", "active mismatched", "max matched",
            "max mismatched", "AUC", "fires",
        ),
        [
            (str(one.latent), one_line(one.label) if one.label else NONE, *figures(one))
            for one in latents[:MOST_ROWS]
        ],
        "Active: share of pairs with any activation. Max: mean of the pairs' maxima. Fires: share "
        f"of positions.{f' {more} more are in the CSV file.' if more > 0 else ''}",
    )  # fmt: skip
