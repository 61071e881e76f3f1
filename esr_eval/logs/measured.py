"""One log as a measurement that another can be held against: its settings, its trials' numbers."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai.log import (
    EvalSampleSummary,
    read_eval_log,
    read_eval_log_sample_summaries,
    read_eval_log_samples,
)

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.logs.reading import (
    ATTEMPTS,
    IMPROVEMENT,
    Note,
    planned_of,
    read_each,
    read_trial,
    reading,
    subject_of,
)
from esr_eval.logs.settings import settings_of


class TrialId(NamedTuple):
    """What pairs a trial of one log with one of another."""

    latent: int
    topic: str
    seed: int
    epoch: int
    level: float
    vector: str


@dataclass(frozen=True)
class Measured:
    """What a log measured, and everything that decides it.

    Attributes:
        path: The log.
        name: Subject, experiment and condition: what logs of two folders are matched by.
        status: Inspect's status of the run.
        planned: How many trials it was to have, epochs counted.
        settings: What decides the numbers: subject, runtime, judge, sampling; equal in logs that
            measure the same thing.
        versions: Libraries and device: what may move single tokens and is no setting.
        boosts: Strength of each trial.
        values: Of each metric, the trials that have it.
        notes: What a reader of the comparison should know.
    """

    path: str
    name: str
    status: str
    planned: int
    settings: dict[str, Any]
    versions: dict[str, str]
    boosts: dict[TrialId, float]
    values: dict[str, dict[TrialId, float]]
    notes: list[str] = field(default_factory=list)

    @property
    def completed(self) -> int:
        """Trials that came to an end without an error."""
        return len(self.boosts) - sum(v > 0 for v in self.values.get("errored", {}).values())


def read_measured(path: str | Path) -> Measured:
    """Read a log, of its samples the summaries and one in full.

    A log that `inspect score --action append` scored more than once is taken as its first judge
    scored it.

    Raises:
        EsrError: The file is no Inspect log, or holds no trials.
    """
    with reading(path):
        return _read(path)


def _read(path: str | Path) -> Measured:
    header = read_eval_log(str(path), header_only=True)
    samples = read_eval_log_sample_summaries(str(path))
    first = next(read_eval_log_samples(str(path), all_samples_required=False), None)
    if not samples and "experiment_id" not in (header.eval.metadata or {}):
        raise EsrError(f"{path} ({header.eval.task}) holds no ESR trial.")
    trials: dict[TrialId, tuple[Trial, EvalSampleSummary]] = {}
    for sample in samples:
        trial = read_trial(path, sample)
        trials[_identify(trial, sample.epoch)] = trial, sample
    if len(trials) < len(samples):
        raise EsrError(f"{path} has several trials of one latent, task, seed and epoch.")
    output = dict((first.output.metadata or {}) if first else {})
    about = header.eval.metadata or {}
    judges, notes = _judges(samples)
    experiment, condition = about.get("experiment_id", ""), str(about.get("condition", ""))
    # Of most experiments the one condition is called like them: "no steering" of no_steering.
    told = condition if condition.replace(" ", "_") != experiment else ""
    parts = (subject_of(header), experiment, told)
    return Measured(
        path=str(path),
        name=", ".join(str(part) for part in parts if part),
        status=header.status,
        planned=planned_of(header),
        settings=settings_of(header) | judges | {"sae_digest": output.get("sae_digest")},
        versions={"device": str(output.get("device"))} | dict(output.get("versions") or {}),
        boosts={key: trial.strength for key, (trial, _) in trials.items()},
        values=_values({key: sample for key, (_, sample) in trials.items()}),
        notes=notes,
    )


def read_all(path: str | Path, note: Note) -> dict[str, Measured]:
    """A log, or all logs of a folder and its folders, by their names.

    Args:
        path: The log or folder.
        note: Told of what is left out of a folder, see `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: There is none, one that is named cannot be read, or two logs have one name.
    """
    logs: dict[str, Measured] = {}
    for found in read_each([path], read_measured, note, recursive=True):
        if found.name in logs:
            raise EsrError(f"{path} has several logs of {found.name}: name the one to compare.")
        logs[found.name] = found
    if not logs:
        raise EsrError(f"There is no log in {path}.")
    return logs


def _identify(trial: Trial, epoch: int) -> TrialId:
    # NaN equals nothing, itself included, so a trial without a level gets a number.
    level = -math.inf if trial.level is None else trial.level
    return TrialId(trial.latent, trial.topic, trial.seed, epoch, level, trial.vector or "")


def _judges(samples: list[EvalSampleSummary]) -> tuple[dict[str, Any], list[str]]:
    """Judge and rubric as the scores have them: a log may have been scored again."""
    found: dict[str, set[Any]] = {"judge": set(), "rubric": set()}
    scorers: set[str] = set()
    for sample in samples:
        scorers |= {name for name in sample.scores or {} if ATTEMPTS.fullmatch(name)}
        score = next(_scores(sample, ATTEMPTS), None)
        details = (score.metadata or {}) if score is not None else {}
        for name, seen in found.items():
            seen |= {details[name]} if name in details else set()
    several = f"scored {len(scorers)} times; the first is taken"
    known = {name: "/".join(sorted(map(str, seen))) for name, seen in found.items() if seen}
    return known, [several] if len(scorers) > 1 else []


def _scores(sample: EvalSampleSummary, scorer: re.Pattern[str]) -> Iterator[Any]:
    return (score for name, score in (sample.scores or {}).items() if scorer.fullmatch(name))


def _numbers(sample: EvalSampleSummary, scorer: re.Pattern[str]) -> dict[str, Any]:
    score = next(_scores(sample, scorer), None)
    return score.value if score is not None and isinstance(score.value, dict) else {}


def _values(samples: Mapping[TrialId, EvalSampleSummary]) -> dict[str, dict[TrialId, float]]:
    values: dict[str, dict[TrialId, float]] = {}
    for key, sample in samples.items():
        improvement = _numbers(sample, IMPROVEMENT)
        numbers = _numbers(sample, ATTEMPTS) | {
            "improvement": improvement.get("improvement"),
            "improvement_unscored": improvement.get("unscored"),
        }
        # A trial that failed in a run without score_on_error has no score that would tell.
        numbers.setdefault("errored", float(bool(sample.error)))
        for metric, number in numbers.items():
            if isinstance(number, int | float) and not math.isnan(number):
                values.setdefault(metric, {})[key] = float(number)
    return values
