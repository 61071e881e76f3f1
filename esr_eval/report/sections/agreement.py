"""How far judges of the same responses agree."""

import pandas as pd

from esr_eval.errors import EsrError
from esr_eval.logs.measures import Measured
from esr_eval.logs.stored import StoredLog
from esr_eval.report.agreement import AgreementReport, agreement_of
from esr_eval.report.intervals import with_interval
from esr_eval.report.section import Evidence, Part, Section, Table, unusable
from esr_eval.report.text import NONE, count, percent
from esr_eval.stats.rates import Rate
from esr_eval.text import one_line


def section(evidence: Evidence) -> Section | None:
    """Pairs of judges, of cross-judge logs and of logs that several judges scored."""
    logs = [*evidence.logs_of("cross_judge"), *_scored_again(evidence)]
    if not logs:
        return None
    answers: list[str] = []
    parts: list[Part] = []
    rows: list[dict[str, object]] = []
    for log in logs:
        try:
            report = agreement_of(log.path)
        except EsrError as error:
            answers.append(unusable(log, error))
            continue
        answers.append(_answer(log, report))
        parts += [_judges(log, report), _pairs(log, report)]
        rows += _numbers(log, report)
    return Section(
        id="agreement",
        title="Agreement of judges",
        question="Do other judges find the same attempts, and the same direction of change?",
        answers=answers,
        parts=parts,
        tables={"agreement": pd.DataFrame(rows)} if rows else {},
        experiment="cross_judge",
    )


def _scored_again(evidence: Evidence) -> list[StoredLog]:
    paths = [one.log.path for one in evidence.conditions]
    found = {one.log.path: one.log for one in evidence.conditions if paths.count(one.log.path) > 1}
    return list(found.values())


def _measured(found: Rate | None) -> Measured | None:
    return None if found is None else Measured.of(found)


def _answer(log: StoredLog, report: AgreementReport) -> str:
    known = [pair for pair in report.pairs if pair.multi_attempt is not None]
    name = one_line(log.condition)
    unscored = sum(judge.unscored for judge in report.judges)
    if not known:
        return f"{name}: no response was judged by two of {len(report.judges)} judges."
    shares = [pair.multi_attempt.estimate.value for pair in known if pair.multi_attempt]
    return (
        f"{name}: {count(len(report.judges), 'judge')} of {count(report.responses, 'response')} "
        f"agree on several attempts in {_range(shares)} of responses per pair of judges; "
        f"{count(unscored, 'verdict')} could not be used."
    )


def _range(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _judges(log: StoredLog, report: AgreementReport) -> Table:
    rows = [
        (
            one_line(judge.name),
            percent(_measured(judge.multi_attempt)),
            f"{judge.judged:,}",
            f"{judge.unscored:,}",
        )
        for judge in report.judges
    ]
    columns = ("judge", "multi-attempt", "judged", "unscored")
    return Table(f"Judges: {one_line(log.condition)}", columns, rows)


def _pairs(log: StoredLog, report: AgreementReport) -> Table:
    rows = []
    for pair in report.pairs:
        kappa = pair.kappa
        both, direction = pair.multi_attempt, pair.direction
        rows.append(
            (
                f"{one_line(pair.first)} and {one_line(pair.second)}",
                percent(_measured(both)),
                NONE if kappa is None else with_interval(kappa.value, kappa.low, kappa.high, ".2f"),
                f"{both.trials:,}" if both else "0",
                percent(_measured(direction)),
                f"{direction.trials:,}" if direction else "0",
            )
        )
    return Table(
        f"Pairs of judges: {one_line(log.condition)}",
        ("judges", "agree on several attempts", "Cohen's kappa", "n", "agree on direction", "n"),
        rows,
        "Direction: of responses with several attempts for both, whether the last is better than "
        "the first. Kappa: agreement beyond chance; not defined where no judge ever differs.",
    )


def _numbers(log: StoredLog, report: AgreementReport) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for pair in report.pairs:
        names = {"log": log.file, "first": pair.first, "second": pair.second}
        rates = {"multi_attempt": pair.multi_attempt, "direction": pair.direction}
        for metric, found in rates.items():
            if (measured := _measured(found)) is not None:
                rows.append({**names, "metric": metric, **measured._asdict()})
        if pair.kappa is not None:
            bounds = {"low": pair.kappa.low, "high": pair.kappa.high}
            rows.append({**names, "metric": "kappa", "value": pair.kappa.value, **bounds})
    return rows
