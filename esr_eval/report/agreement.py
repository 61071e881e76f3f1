"""How far judges of the same responses agree (paper, experiment 7): from logs with several judges.

Logs of the task cross_judge have several, and so have logs that were scored again with
`inspect score --action append`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from inspect_ai.log import EvalSampleSummary, read_eval_log_sample_summaries
from inspect_ai.scorer import Score

from esr_eval._util import spreadsheet
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note, read_each, reading
from esr_eval.scorers.agreement import CLUSTER, RECORD_SCORER
from esr_eval.stats.kappa import clustered_kappa
from esr_eval.stats.rates import Estimate, Rate, rate

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


COLUMNS = (
    "log", "first", "second", "responses", "agreement", "agreement_low", "agreement_high",
    "kappa", "kappa_low", "kappa_high", "several_for_both", "direction", "direction_low",
    "direction_high", "first_unscored", "second_unscored",
)  # fmt: skip


def write_csv(path: Path, reports: Sequence[AgreementReport]) -> None:
    """One line for each pair of judges."""
    rows: list[tuple[object, ...]] = [COLUMNS]
    for report in reports:
        unscored = {judge.name: judge.unscored for judge in report.judges}
        for pair in report.pairs:
            multi, direction = pair.multi_attempt, pair.direction
            rows.append(
                (
                    *(report.path, pair.first, pair.second),
                    multi.trials if multi else 0,
                    *_bounds(multi.estimate if multi else None),
                    *_bounds(pair.kappa),
                    direction.trials if direction else 0,
                    *_bounds(direction.estimate if direction else None),
                    *(unscored[pair.first], unscored[pair.second]),
                )
            )
    spreadsheet.write_csv(path, rows)


def _bounds(found: Estimate | None) -> tuple[float | str | None, ...]:
    return (found.value, found.low, found.high) if found else ("", "", "")
