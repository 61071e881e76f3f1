"""Conditions: a log as one judge scored it, with one row per trial and its measured numbers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
from inspect_ai.log import EvalSampleSummary

from esr_eval.data.experiments import Experiment
from esr_eval.logs.measures import (
    HOLISTIC,
    HOLISTIC_MEANS,
    HOLISTIC_RATES,
    Measured,
    measure,
)
from esr_eval.logs.reading import ATTEMPTS, IMPROVEMENT
from esr_eval.logs.runs import TrialKey, judge_of, reasons
from esr_eval.logs.stored import StoredLog
from esr_eval.scorers.values import MEANS, RATES

_ABOUT = ("latent", "label", "topic", "seed", "strength", "level", "vector")


@dataclass(frozen=True)
class Condition:
    """One log as one judge scored it.

    Attributes:
        log: The log.
        scorer: Name of the scores in it.
        judge: Who gave them.
        name: Tells this condition from all others of the report.
        trials: A row per sample: id, epoch, error, trial, and every value (NaN: not defined).
        second_judge: Who judged the responses as a whole, where the log has that view.
    """

    log: StoredLog
    scorer: str
    judge: str
    name: str
    trials: pd.DataFrame
    second_judge: str | None

    @property
    def experiment(self) -> Experiment | None:
        """The experiment that it belongs to."""
        return self.log.experiment

    @property
    def subject(self) -> str:
        """The model under test."""
        return self.log.subject

    @property
    def runtime(self) -> Mapping[str, Any]:
        """Model, SAE and layers, as far as the log's header tells."""
        found = self.log.metadata.get("runtime")
        return found if isinstance(found, dict) else {}

    @property
    def direction(self) -> str:
        """What was boosted, as a noun: an SAE's latent, or a plain vector."""
        return "vector" if self.trials["vector"].notna().any() else "latent"

    @property
    def failed(self) -> pd.Series:
        """Which trials failed before there was a response."""
        return self.trials["error"] | (self.trials["errored"] == 1)

    @property
    def unscored(self) -> dict[str, int]:
        """Why verdicts could not be used, with counts."""
        return reasons(self.log.samples, self.scorer)

    @cached_property
    def measures(self) -> dict[str, Measured]:
        """Every rate and mean that is defined for at least one trial."""
        return measure(self.trials)

    def by_trial(self, key: str) -> dict[TrialKey, float]:
        """A value of every trial, by what pairs trials across logs."""
        table = self.trials[["latent", "topic", "seed", "epoch", key]]
        return {
            TrialKey(int(latent), str(topic), int(seed), int(epoch)): float(value)
            for latent, topic, seed, epoch, value in table.itertuples(index=False, name=None)
        }


def conditions_of(logs: Iterable[StoredLog]) -> list[Condition]:
    """Every log that holds trials, once for each judge that scored them."""
    found: list[Condition] = []
    seen: set[tuple[str, str, str]] = set()
    for log in logs:
        if not log.samples or any("latent" not in sample.metadata for sample in log.samples):
            continue
        names = dict.fromkeys(name for sample in log.samples for name in sample.scores or {})
        second = next((name for name in names if IMPROVEMENT.fullmatch(name)), None)
        for scorer in (name for name in names if ATTEMPTS.fullmatch(name)):
            judge = judge_of(log.header, log.samples, scorer)
            identity = (log.header.eval.eval_id, scorer, judge)
            if identity in seen:
                continue
            seen.add(identity)
            found.append(
                Condition(
                    log=log,
                    scorer=scorer,
                    judge=judge,
                    name="",
                    trials=_trials(log.samples, scorer, second),
                    second_judge=judge_of(log.header, log.samples, second) if second else None,
                )
            )
    return _named(found)


def _named(found: list[Condition]) -> list[Condition]:
    """Give names as short as tells them apart: condition, then subject, judge, and a number."""
    several_subjects = len({one.subject for one in found}) > 1
    several_judges = len({one.judge for one in found}) > 1
    names = []
    for one in found:
        parts = [one.log.condition]
        parts += [one.subject] if several_subjects else []
        parts += [one.judge] if several_judges else []
        names.append(", ".join(parts))
    numbered = [
        f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name
        for at, name in enumerate(names)
    ]
    return [replace(one, name=name) for one, name in zip(found, numbered, strict=True)]


def _trials(samples: list[EvalSampleSummary], scorer: str, second: str | None) -> pd.DataFrame:
    rows = []
    for sample in samples:
        row: dict[str, Any] = {"id": str(sample.id), "epoch": sample.epoch}
        row["error"] = sample.error is not None or not sample.completed
        row |= {name: sample.metadata.get(name) for name in _ABOUT}
        row |= _numbers(sample, scorer, (*RATES, *MEANS))
        if second is not None:
            keys = (*HOLISTIC_RATES, *HOLISTIC_MEANS)
            values = _numbers(sample, second, keys)
            row |= {HOLISTIC + key: values[key] for key in keys}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for name in ("strength", "level"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def _numbers(sample: EvalSampleSummary, scorer: str, keys: Iterable[str]) -> dict[str, float]:
    score = (sample.scores or {}).get(scorer)
    values = score.value if score is not None and isinstance(score.value, dict) else {}
    return {key: _number(values.get(key)) for key in keys}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
