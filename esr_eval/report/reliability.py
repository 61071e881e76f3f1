"""How far a judge repeats itself, beside the rates that rest on it: from logs judged again."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from inspect_ai.log import EvalSampleSummary
from inspect_ai.scorer import Score

from esr_eval.logs.stored import StoredLog
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import Section, Table, count, mean, percent
from esr_eval.scorers.reliability import deviation
from esr_eval.stats.rates import Estimate, Rate, rate
from esr_eval.text import one_line

SCORER = re.compile(r"(?:.*/)?reliability\d*")
"""The scorer's name; `inspect score` puts a number behind it where it is appended again."""
ONE_IN_TWENTY = 1.645
"""Standard deviations that noise exceeds, in one direction, in 5 % of draws."""


@dataclass(frozen=True)
class Reliability:
    """One judge's verdicts on one log, judged again; None where there was nothing to compare.

    Attributes:
        name: Of the run.
        log: What tables call its log.
        judge: Who judged.
        rejudged: Responses judged again.
        unusable: Of these, those with a new verdict that could not be used.
        deviation: Standard deviation of one score.
        agrees: Share on whose having several attempts both verdicts agree.
        flipped: Share of improvements that are none once each attempt is judged alone.
    """

    name: str
    log: str
    judge: str
    rejudged: int
    unusable: int
    deviation: Estimate | None
    agrees: Rate | None
    flipped: Rate | None

    @property
    def margin(self) -> float | None:
        """What last and first score must differ by for noise alone to pass it in 5 % of restarts.

        As for two independent scores with normal errors; None where the judge repeats itself
        exactly, for then its errors show in no repetition.
        """
        if self.deviation is None or not self.deviation.value:
            return None
        return ONE_IN_TWENTY * math.sqrt(2) * self.deviation.value


def reliability_of(name: str, log: StoredLog, called: str) -> list[Reliability]:
    """What a log's trials that were judged again say of each judge.

    Args:
        name: Of the run.
        log: Its log.
        called: What tables call the log.
    """
    names = dict.fromkeys(key for sample in log.samples for key in sample.scores or {})
    found = (_reliability(name, log, called, key) for key in names if SCORER.fullmatch(key))
    return [one for one in found if one is not None]


def _reliability(name: str, log: StoredLog, called: str, scorer: str) -> Reliability | None:
    samples = [sample for sample in log.samples if _value(sample, scorer, "rejudged") == 1]
    if not samples:
        return None

    def values(key: str) -> list[float]:
        return [_value(sample, scorer, key) for sample in samples]

    latents = [str(sample.metadata.get("latent")) for sample in samples]
    variances = [
        (value, latent)
        for value, latent in zip(values("variance"), latents, strict=True)
        if not math.isnan(value)
    ]
    judges = {
        str((score.metadata or {}).get("judge", "?"))
        for sample in samples
        if (score := _score(sample, scorer)) is not None
    }
    return Reliability(
        name=name,
        log=called,
        judge=", ".join(sorted(judges)),
        rejudged=len(samples),
        unusable=sum(value == 1 for value in values("unusable")),
        deviation=Estimate(*deviation(*zip(*variances, strict=True))) if variances else None,
        agrees=rate(values("agrees"), latents),
        flipped=rate(values("flipped"), latents),
    )


def reliability_table(found: Sequence[Reliability]) -> Table | None:
    """One row for each run and judge; None where nothing was judged again."""
    if not found:
        return None
    return Table(
        "The judge judged again, blind, on a share of the responses",
        (
            "",
            "judge",
            "judged again",
            "SD of a score",
            "agree on several",
            "improvements that flip",
            "margin",
        ),
        [
            (
                one.name,
                one_line(one.judge),
                f"{one.rejudged}" + (f" ({one.unusable} unusable)" if one.unusable else ""),
                mean(one.deviation) if one.deviation else None,
                _share(one.agrees),
                _share(one.flipped),
                None if one.margin is None else f"{one.margin:.1f}",
            )
            for one in found
        ],
        "A flip: judged alone, in shuffled order, the last attempt scores no higher than the "
        "first. Margin: noise alone passes it in 5 % of restarts (1.645 x root 2 x SD). A judge "
        "that computes repeats itself exactly, right or not: it has no margin.",
    )


def reliability_frame(found: Iterable[Reliability]) -> pd.DataFrame:
    """One line for each number, as in the table of metrics."""
    rows: list[dict[str, object]] = []
    for one in found:
        about = {"log": one.log, "judge": one.judge, "total": one.rejudged}
        numbers = {
            "score_sd": one.deviation,
            "rejudged_agrees": one.agrees.estimate if one.agrees else None,
            "rejudged_flipped": one.flipped.estimate if one.flipped else None,
            "rejudged_margin": None if one.margin is None else Estimate(one.margin),
        }
        rows += [
            {**about, "metric": key, "value": value.value, "low": value.low, "high": value.high}
            for key, value in numbers.items()
            if value is not None
        ]
    return pd.DataFrame(rows, dtype=object)


def with_reliability(frame: pd.DataFrame, found: Sequence[Reliability]) -> pd.DataFrame:
    """A table of metrics with these below it."""
    return pd.concat([frame, reliability_frame(found)], ignore_index=True) if found else frame


def reliability_section(evidence: Evidence) -> Section | None:
    """The judges' noise in the logs that were judged again."""
    names = {id(one.log): one.name for one in evidence.conditions}
    found = [
        row
        for log in evidence.logs
        for row in reliability_of(one_line(names.get(id(log), log.condition)), log, log.file)
    ]
    table = reliability_table(found)
    if table is None:
        return None
    return Section(
        id="reliability",
        title="How far the judge repeats itself",
        question="How much of a change between two attempts is the judge's own noise?",
        answers=[_sentence(one) for one in found],
        parts=[table],
        tables={"reliability": reliability_frame(found)},
    )


def _sentence(one: Reliability) -> str:
    who = f"{one.name} (judged by {one_line(one.judge)})"
    if one.deviation is None:
        return f"{who}: of {count(one.rejudged, 'response')} judged again, none gave two scores."
    said = (
        f"{who}: on {count(one.rejudged, 'response')} judged again a score has a standard "
        f"deviation of {mean(one.deviation)}"
    )
    if one.flipped is not None:
        said += (
            f"; of {count(one.flipped.trials, 'improvement')} {percent(one.flipped.estimate)} are "
            "none when each attempt is judged alone"
        )
    if one.margin is None:
        return f"{said}; it repeats itself exactly, right or not."
    return f"{said}; noise stays under 5 % of restarts from a margin of {one.margin:.1f}."


def _share(found: Rate | None) -> str | None:
    return None if found is None else f"{percent(found.estimate)} of {found.trials}"


def _score(sample: EvalSampleSummary, scorer: str) -> Score | None:
    return (sample.scores or {}).get(scorer)


def _value(sample: EvalSampleSummary, scorer: str, key: str) -> float:
    score = _score(sample, scorer)
    value = score.value.get(key) if score is not None and isinstance(score.value, dict) else None
    return float(value) if isinstance(value, int | float) else math.nan
