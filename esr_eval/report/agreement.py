"""How far judges of the same responses agree (paper, experiment 7): from logs with several judges.

Logs of the task cross_judge have several, and so have logs that were scored again with
`inspect score --action append`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd
from inspect_ai.log import EvalSampleSummary, read_eval_log_sample_summaries
from inspect_ai.scorer import Score

from esr_eval.errors import EsrError
from esr_eval.logs.measures import Measured
from esr_eval.logs.reading import Note, read_each, reading
from esr_eval.logs.stored import StoredLog
from esr_eval.report.dots import Dots, Group, Key, Lane, Mark, Row
from esr_eval.report.evidence import Evidence, usable
from esr_eval.report.section import Part, Section, Table, count, percent, with_interval
from esr_eval.scorers.agreement import CLUSTER, RECORD_SCORER
from esr_eval.stats.comparisons import clustered_kappa
from esr_eval.stats.rates import Estimate, Rate, rate
from esr_eval.text import one_line

NAN = math.nan


@dataclass(frozen=True)
class Judge:
    """One judge of a log.

    Attributes:
        scorer: Name of the scorer in the log.
        name: The judge's own name, with the scorer's where one judge has judged more than once.
        judged: Responses with a usable verdict.
        unscored: Responses whose verdict could not be used.
        multi_attempt: Share of the judged with two attempts or more.
    """

    scorer: str
    name: str
    judged: int
    unscored: int
    multi_attempt: Rate | None


@dataclass(frozen=True)
class PairAgreement:
    """Two judges compared over the responses that both judged; None where there are none.

    Attributes:
        first: Name of the one judge.
        second: Name of the other.
        multi_attempt: Share of responses on whose having several attempts they agree.
        kappa: The same beyond chance (Cohen's kappa); None where neither ever differs.
        direction: Of responses with several attempts for both, the share in which both say that
            the last attempt is better than the first, or both that it is not.
    """

    first: str
    second: str
    multi_attempt: Rate | None
    kappa: Estimate | None
    direction: Rate | None


@dataclass(frozen=True)
class AgreementReport:
    """All judges of a log and all pairs of them, the judge of record first."""

    path: str
    responses: int
    judges: list[Judge]
    pairs: list[PairAgreement]


def agreement_of(log_path: str | Path) -> AgreementReport:
    """Compare all judges of a log.

    Raises:
        EsrError: The log cannot be read, or fewer than two judges scored it.
    """
    with reading(log_path):
        return _read(log_path)


def agreements_of(paths: Sequence[str | Path], note: Note) -> list[AgreementReport]:
    """Compare the judges of each log.

    Args:
        paths: Logs and folders of logs.
        note: Told of what is left out, see `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: A log that is named cannot be used, or there is none that can.
    """
    reports = read_each(paths, agreement_of, note)
    if not reports:
        raise EsrError(f"There is no log with several judges in {', '.join(map(str, paths))}.")
    return reports


def _read(log_path: str | Path) -> AgreementReport:
    samples = read_eval_log_sample_summaries(str(log_path))
    samples = [sample for sample in samples if any(map(_is_verdict, _scores(sample).values()))]
    scorers = dict.fromkeys(
        name for sample in samples for name, score in _scores(sample).items() if _is_verdict(score)
    )
    ordered = sorted(scorers, key=lambda name: name != RECORD_SCORER)
    if len(ordered) < 2:
        raise EsrError(
            f"{log_path} has verdicts of {len(ordered)} judge(s): run esr_eval/cross_judge on it, "
            "or score it again with `inspect score --action append`."
        )
    verdicts = [_Verdicts.read(samples, scorer) for scorer in ordered]
    names = _names(verdicts)
    clusters = [_cluster(sample) for sample in samples]
    return AgreementReport(
        path=str(log_path),
        responses=len(samples),
        judges=[one.summary(name, clusters) for one, name in zip(verdicts, names, strict=True)],
        pairs=[
            _compare(first, second, clusters)
            for first, second in combinations(zip(names, verdicts, strict=True), 2)
        ],
    )


@dataclass(frozen=True)
class _Verdicts:
    """One judge's verdicts, a number for each response: NaN where it is not defined."""

    scorer: str
    judge: str
    multi: list[float]
    improved: list[float]
    unscored: int

    @classmethod
    def read(cls, samples: Sequence[EvalSampleSummary], scorer: str) -> "_Verdicts":
        scores = [_scores(sample).get(scorer) for sample in samples]
        judges = {str((one.metadata or {}).get("judge", "?")) for one in scores if one is not None}
        return cls(
            scorer=scorer,
            judge=", ".join(sorted(judges)),
            # Without an attempt there are not several, though the rate's denominator leaves it out.
            multi=[
                0.0 if _value(one, "no_attempt") == 1 else _value(one, "multi_attempt")
                for one in scores
            ],
            improved=[_value(one, "improved") for one in scores],
            unscored=sum(_value(one, "unscored") == 1 for one in scores),
        )

    def summary(self, name: str, clusters: list[str]) -> Judge:
        return Judge(
            scorer=self.scorer,
            name=name,
            judged=sum(not math.isnan(value) for value in self.multi),
            unscored=self.unscored,
            multi_attempt=rate(self.multi, clusters),
        )


def _names(verdicts: Sequence[_Verdicts]) -> list[str]:
    """The judges' names, told apart where one judge has judged more than once."""
    names = [
        f"{one.judge} (of record)" if one.scorer == RECORD_SCORER else one.judge for one in verdicts
    ]
    return [
        f"{name} ({one.scorer})" if names.count(name) > 1 else name
        for name, one in zip(names, verdicts, strict=True)
    ]


def _compare(
    first: tuple[str, _Verdicts], second: tuple[str, _Verdicts], clusters: list[str]
) -> PairAgreement:
    (name, one), (other_name, other) = first, second
    return PairAgreement(
        first=name,
        second=other_name,
        multi_attempt=rate(_same(one.multi, other.multi), clusters),
        kappa=clustered_kappa(one.multi, other.multi, clusters),
        direction=rate(_same(one.improved, other.improved), clusters),
    )


def _same(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [NAN if math.isnan(a + b) else float(a == b) for a, b in zip(first, second, strict=True)]


def _scores(sample: EvalSampleSummary) -> dict[str, Score]:
    return sample.scores or {}


def _is_verdict(score: Score) -> bool:
    """Whether it is a verdict on attempts, of a response that there is."""
    value = score.value
    return isinstance(value, dict) and "multi_attempt" in value and value.get("errored") != 1


def _value(score: Score | None, key: str) -> float:
    value = score.value.get(key) if score is not None and isinstance(score.value, dict) else None
    return float(value) if isinstance(value, int | float) else NAN


def _cluster(sample: EvalSampleSummary) -> str:
    return str(sample.metadata.get(CLUSTER, sample.metadata.get("latent")))


def agreement_frame(reports: Sequence[AgreementReport]) -> pd.DataFrame:
    """One line for each pair of judges."""
    rows: list[dict[str, object]] = []
    for report in reports:
        unscored = {judge.name: judge.unscored for judge in report.judges}
        for pair in report.pairs:
            multi, direction = pair.multi_attempt, pair.direction
            rows.append(
                {
                    "log": report.path,
                    "first": pair.first,
                    "second": pair.second,
                    "responses": multi.trials if multi else 0,
                    **_bounds("agreement", multi.estimate if multi else None),
                    **_bounds("kappa", pair.kappa),
                    "several_for_both": direction.trials if direction else 0,
                    **_bounds("direction", direction.estimate if direction else None),
                    "first_unscored": unscored[pair.first],
                    "second_unscored": unscored[pair.second],
                }
            )
    return pd.DataFrame(rows, dtype=object)


def _bounds(name: str, found: Estimate | None) -> dict[str, float | None]:
    found = found or Estimate(NAN, NAN, NAN)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def judge_table(report: AgreementReport) -> Table:
    """What each judge found, and what could not be used of it."""
    return Table(
        f"Judges of the same {report.responses} responses",
        ("judge", "judged", "unscored", "multi-attempt rate"),
        [
            (one_line(judge.name), judge.judged, judge.unscored, _share(judge.multi_attempt))
            for judge in report.judges
        ],
    )


def pair_table(report: AgreementReport) -> Table:
    """Every pair of judges compared."""
    return Table(
        "Agreement of judges, 95 % intervals clustered by latent",
        ("judges", "responses", "agree on several attempts", "kappa", "agree on direction"),
        [
            (
                f"{one_line(pair.first)} / {one_line(pair.second)}",
                pair.multi_attempt.trials if pair.multi_attempt else 0,
                _share(pair.multi_attempt),
                _number(pair.kappa, ".2f"),
                _share(pair.direction, with_trials=True),
            )
            for pair in report.pairs
        ],
        "Direction: of responses with several attempts for both judges, whether the last "
        "is better than the first. Published, for five judges: over 95 % agreement on several "
        "attempts, 93 to 97 % on direction.",
    )


def _share(found: Rate | None, with_trials: bool = False) -> str | None:
    if found is None:
        return None
    of = f" of {found.trials}" if with_trials else ""
    return _number(found.estimate, ".1f", f" %{of}", 100)


def _number(found: Estimate | None, form: str, unit: str = "", scale: float = 1) -> str | None:
    if found is None:
        return None
    return with_interval(found, form, unit, scale)


def agreement_section(evidence: Evidence) -> Section | None:
    """Pairs of judges, of cross-judge logs and of logs that several judges scored."""
    logs = [*evidence.logs_of("cross_judge"), *_scored_again(evidence)]
    if not logs:
        return None
    answers: list[str] = []
    parts: list[Part] = []
    figures: list[Part] = []
    rows: list[dict[str, object]] = []
    for log, report in usable(logs, agreement_of, answers):
        answers.append(_answer(log, report))
        figures += [figure] if (figure := _figure(report)) is not None else []
        parts += [judge_table(report), pair_table(report)]
        rows += _numbers(log, report)
    return Section(
        id="agreement",
        title="Agreement of judges",
        question="Do other judges find the same attempts, and the same direction of change?",
        answers=answers,
        figures=figures,
        parts=parts,
        tables={"agreement": pd.DataFrame(rows)} if rows else {},
        experiment="cross_judge",
    )


_AGREED = (("full", "several attempts"), ("diamond", "direction of change"))


def _figure(report: AgreementReport) -> Dots | None:
    """How often each pair of judges agrees."""
    rows = []
    for pair in report.pairs:
        lanes = []
        rates = (pair.multi_attempt, pair.direction)
        for (shape, name), found in zip(_AGREED, map(_measured, rates), strict=True):
            if found is not None and found.low is not None and found.high is not None:
                said = f"agree on {name}: {percent(found)}"
                mark = Mark(shape, 100 * found.value, 100 * found.low, 100 * found.high, said)  # type: ignore[arg-type]
                lanes.append(Lane(name, [mark], percent(found)))
        if lanes:
            rows.append(Row(f"{one_line(pair.first)} / {one_line(pair.second)}", "", lanes))
    keys = [Key(shape, f"agree on {name}") for shape, name in _AGREED]  # type: ignore[arg-type]
    title = "Responses on which two judges agree"
    return Dots(title, "%", [Group("", rows)], keys, (0.0, 100.0)) if rows else None


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
