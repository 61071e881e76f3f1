"""Conditions: a log as one judge scored it, with one row per trial and its measured numbers."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from inspect_ai.log import EvalSampleSummary
from inspect_ai.scorer import Score
from numpy.typing import NDArray

from esr_eval.data.experiments import Experiment, current_id
from esr_eval.data.trial import OF_NORM, UNCALIBRATED
from esr_eval.errors import EsrError
from esr_eval.logs.measures import (
    HOLISTIC,
    HOLISTIC_MEANS,
    HOLISTIC_RATES,
    Alarms,
    Measured,
    estimate_restarts,
    false_alarms,
    measure,
)
from esr_eval.logs.reading import ATTEMPTS, IMPROVEMENT, read_each, read_trial, reading
from esr_eval.logs.stored import StoredLog, read_stored
from esr_eval.scorers.attempts import MEANS, RATES, Bars, bars_of, stored_numbers
from esr_eval.stats.rates import Floats
from esr_eval.text import one_line, told_apart

_NUMBERS = ("strength", "level", "share_of_norm")
_ABOUT = ("latent", "label", "topic", "seed", *_NUMBERS, "strength_found", "vector")
FITS = re.compile(r"(explained_variance|l0)_layer_(\d+)")
"""Values in a sample's metadata that say how well the SAE describes a layer's residuals."""


AGAIN = "inspect score LOG --scorer esr_eval/attempts"
"""What gives a log of before the values that it lacks."""


class TrialKey(NamedTuple):
    """What makes two trials of different logs the same but for what the logs vary.

    NaN equals nothing, itself included: so a trial without a level has a number, too.
    """

    latent: int
    topic: str
    seed: int
    epoch: int
    level: float = -math.inf
    vector: str = ""


@dataclass(frozen=True)
class Condition:
    """One log as one judge scored it.

    Attributes:
        log: The log.
        scorer: Name of the scores in it; empty where nobody has scored it.
        judge: Who gave them.
        name: Tells this condition from all others that it is read with.
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
    def settings(self) -> dict[str, Any]:
        """What decides its numbers: the log's settings, and judge and rubric of its scores."""
        known = self.log.settings | {"judge": self.judge}
        if rubrics := _details(self.log.samples, self.scorer, "rubric"):
            known["rubric"] = "/".join(rubrics)
        return known | {"sae_digest": self.log.output.get("sae_digest")}

    @property
    def steering(self) -> str:
        """Whether the boost is on: steered, unsteered, or both."""
        found = {str(sample.metadata.get("condition", "?")) for sample in self.log.samples}
        return "/".join(sorted(found)) or "?"

    @property
    def direction(self) -> str:
        """What was boosted, as a noun: an SAE's latent, or a plain vector."""
        return "vector" if self.trials["vector"].notna().any() else "latent"

    @property
    def uncalibrated(self) -> bool:
        """Whether strengths are a prior's or a share of the norm, whatever the scores there."""
        ways = self.trials["strength_found"].dropna()
        return any(how == UNCALIBRATED or how.endswith(OF_NORM) for how in ways.astype(str))

    @cached_property
    def fits(self) -> dict[int, dict[str, float]]:
        """How well the SAE describes the layers: explained variance and L0, by layer."""
        found: dict[int, dict[str, float]] = {}
        for sample in self.log.samples[:1]:
            for name, value in sample.metadata.items():
                if match := FITS.fullmatch(name):
                    found.setdefault(int(match[2]), {})[match[1]] = float(value)
        return found

    @property
    def failed(self) -> pd.Series:
        """Which trials failed before there was a response."""
        return self.trials["error"] | (self.trials["errored"] == 1)

    @property
    def completed(self) -> int:
        """Trials that came to an end without an error."""
        return int((~self.failed).sum())

    @cached_property
    def unscored(self) -> dict[str, int]:
        """Why verdicts could not be used, with counts, the most frequent first."""
        found: Counter[str] = Counter()
        for score in _scores(self.log.samples, self.scorer):
            if isinstance(score.value, dict) and score.value.get("unscored") == 1:
                why = (score.metadata or {}).get("unscored_because")
                found[one_line(str(why), 40) if why else "no reason given"] += 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    @cached_property
    def measures(self) -> dict[str, Measured]:
        """Every rate and mean that is defined for at least one trial."""
        return measure(self.trials)

    @cached_property
    def all_restarts(self) -> Measured | str:
        """All restarts, estimated from judge and phrase detector; or why they cannot be."""
        return estimate_restarts(self.trials, self.judge)

    @property
    def bars(self) -> str:
        """What improvements had to pass, such as `margin 10, recovery 79`."""
        known = {name: _details(self.log.samples, self.scorer, name) for name in Bars._fields}
        before = bars_of(self.judge)._asdict()
        said = {name: found or [str(before[name])] for name, found in known.items()}
        return ", ".join(
            f"{name} {'/'.join(f'{float(value):g}' for value in found)}"
            for name, found in said.items()
        )

    @cached_property
    def lacking(self) -> bool:
        """Whether it was scored by a version that did not know all of today's values."""
        values = [score.value for score in _scores(self.log.samples, self.scorer)]
        return any(isinstance(one, dict) and not one.keys() >= set(RATES) for one in values)

    @cached_property
    def keys(self) -> list[TrialKey]:
        """What pairs each trial with those of other logs."""
        table = self.trials[[*TrialKey._fields]]
        return [
            TrialKey(
                int(latent),
                str(topic),
                int(seed),
                int(epoch),
                -math.inf if math.isnan(level) else float(level),
                vector if isinstance(vector, str) else "",
            )
            for latent, topic, seed, epoch, level, vector in table.itertuples(
                index=False, name=None
            )
        ]

    def by_trial(self, key: str) -> dict[TrialKey, float]:
        """A value of every trial that has it, by what pairs trials across logs."""
        if key not in self.trials:
            return {}
        values = self.trials[key].to_numpy(float)
        return {
            name: float(value)
            for name, value in zip(self.keys, values, strict=True)
            if not math.isnan(value)
        }


def shared_trials(
    first: Mapping[TrialKey, float], second: Mapping[TrialKey, float]
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Values of the trials that both conditions have, in one order, and their latents.

    Those with NaN in either condition drop out.
    """
    keys = [key for key in first if key in second and not np.isnan((first[key], second[key])).any()]
    keys.sort()
    return (
        np.array([first[key] for key in keys], dtype=float),
        np.array([second[key] for key in keys], dtype=float),
        np.array([key.latent for key in keys], dtype=np.int64),
    )


def conditions_of(logs: Iterable[StoredLog]) -> list[Condition]:
    """Every log that holds trials, once for each judge that scored them."""
    found: list[Condition] = []
    seen: set[tuple[str, str, str]] = set()
    for log in logs:
        if not log.samples or any("latent" not in sample.metadata for sample in log.samples):
            continue
        for scorer in scorers_of(log):
            one = _condition(log, scorer)
            identity = (log.header.eval.eval_id, scorer, one.judge)
            if identity not in seen:
                seen.add(identity)
                found.append(one)
    return _named(found)


def alarms_of(one: Condition, among: Iterable[Condition]) -> Alarms | None:
    """False alarms of a condition's judge and of the detector, in its subject's unsteered answers.

    Args:
        one: The condition.
        among: Where to look for unsteered ones. Answers to a prefilled beginning do not count: it
            may be off topic itself.
    """
    unsteered = [
        other.trials
        for other in among
        if (other.subject, other.judge, other.steering) == (one.subject, one.judge, "unsteered")
        and not (other.experiment and other.experiment.id.startswith("prefill"))
    ]
    return false_alarms(unsteered)


def read_scored(path: str | Path) -> list[Condition]:
    """Read a log whose results are there: a condition for each judge that scored it.

    Raises:
        EsrError: The file is no Inspect log of ours, or has no scores of `esr_eval/attempts`.
    """
    return scored(read_stored(path))


def scored(log: StoredLog) -> list[Condition]:
    """A condition for each judge that scored a log's trials.

    Raises:
        EsrError: It holds no trials, or has no scores of `esr_eval/attempts`.
    """
    for sample in log.samples:
        read_trial(log.path, sample)
    scores = log.header.results.scores if log.header.results else []
    scorers = dict.fromkeys(_tail(s.scorer) for s in scores if ATTEMPTS.fullmatch(s.scorer))
    if not scorers:
        raise unscored(log, "attempts")
    return [_condition(log, scorer) for scorer in scorers]


def unscored(log: StoredLog, scorer: str) -> EsrError:
    """The error that a log lacks the scores that its numbers are taken from.

    Args:
        log: The log.
        scorer: Whose scores.
    """
    return EsrError(
        f"{log.path} has no scores of esr_eval/{scorer} (status: {log.status}): finish it with "
        f"`inspect eval-retry`, or score it with `inspect score --scorer esr_eval/{scorer}`."
    )


def read_all_scored(paths: Sequence[Path], note: Callable[[str], None]) -> list[Condition]:
    """Read logs and whole folders of logs, a folder's in the order in which they were made.

    Args:
        paths: Logs and folders.
        note: Told of the logs that are left out, such as those of other tasks in a folder.

    Raises:
        EsrError: A log that is named cannot be used, or there is none that can.
    """
    conditions = [one for found in read_each(paths, read_scored, note) for one in found]
    if not conditions:
        where = ", ".join(map(str, paths))
        raise EsrError(
            f"There is no log with scores of esr_eval/attempts in {where}, sub-folders included: "
            "name the folder that `inspect eval` wrote to (--log-dir)."
        )
    return conditions


def read_condition(path: str | Path) -> Condition:
    """Read a log, scored or not, as its first judge scored it; named by what ran.

    The name holds subject, experiment and condition: what logs of two folders are matched by.

    Raises:
        EsrError: The file is no Inspect log of ours, holds no trials, or one of them twice.
    """
    log = _read_trials(path, with_output=True)
    experiment = current_id(str(log.metadata.get("experiment_id", "")))
    condition = str(log.metadata.get("condition", ""))
    # Of most experiments the one condition is called like them: "no steering" of no_steering.
    told = condition if condition.replace(" ", "_") != experiment else ""
    # The main experiment goes by its condition.
    shown = "" if experiment == "esr" and condition.startswith("main") else experiment
    name = ", ".join(part for part in (log.subject, shown, told) if part)
    with reading(path):
        found = replace(_condition(log, next(iter(scorers_of(log)), "")), name=name)
        if len(set(found.keys)) < len(found.keys):
            raise EsrError(f"{path} has several trials of one latent, task, seed and epoch.")
    return found


def read_values(path: str | Path, metric: str = "multi_attempt") -> dict[TrialKey, float]:
    """Read a metric's value of each trial that has one, as the first judge of the log scored it.

    Args:
        path: A log of the task esr.
        metric: A key of the score, see `esr_eval.scorers.attempts`.

    Raises:
        EsrError: The file is no Inspect log of ours, or has no trial with that value.
    """
    log = read_stored(path)
    with reading(path):
        values = next((one.by_trial(metric) for one in conditions_of([log])), None)
    if not values:
        raise EsrError(f"{path} has no trial with a value of {metric}.")
    return values


def scorers_of(log: StoredLog) -> list[str]:
    """Names of the scores of attempts that the log's samples have; one for each judge."""
    names = dict.fromkeys(name for sample in log.samples for name in sample.scores or {})
    return [name for name in names if ATTEMPTS.fullmatch(name)]


def told_reasons(found: Mapping[str, int]) -> str:
    """Reasons with their counts as a phrase: `3 invalid_json, 1 truncated`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in found.items())


def _read_trials(path: str | Path, *, with_output: bool = False) -> StoredLog:
    log = read_stored(path, with_output=with_output)
    for sample in log.samples:
        read_trial(path, sample)
    return log


def _condition(log: StoredLog, scorer: str) -> Condition:
    names = dict.fromkeys(name for sample in log.samples for name in sample.scores or {})
    second = next((name for name in names if IMPROVEMENT.fullmatch(name)), None)
    return Condition(
        log=log,
        scorer=scorer,
        judge=_judge(log, scorer),
        name=log.condition,
        trials=_trials(log.samples, scorer, second),
        second_judge=_judge(log, second) if second else None,
    )


def _judge(log: StoredLog, scorer: str) -> str:
    """The judge that scored: what the scores say, for a log may have been scored again."""
    return ", ".join(_details(log.samples, scorer, "judge")) or log.judge


def _scores(samples: Iterable[EvalSampleSummary], scorer: str) -> Iterator[Score]:
    return (scores[scorer] for sample in samples if scorer in (scores := sample.scores or {}))


def _details(samples: Iterable[EvalSampleSummary], scorer: str, name: str) -> list[str]:
    """What the scores say of themselves under a name: each once, in order."""
    details = (score.metadata or {} for score in _scores(samples, scorer))
    return sorted({str(detail[name]) for detail in details if name in detail})


def _tail(scorer: str) -> str:
    return scorer.rpartition("/")[2]


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
    told = told_apart(names, [differences(one) for one in found])
    return [replace(one, name=name) for one, name in zip(found, told, strict=True)]


def differences(one: Condition) -> dict[str, str]:
    """What may tell a condition from another of its name, in words, the most telling first."""
    spec, plan = one.log.header.eval, one.log.header.plan.config
    latents, trials = int(one.trials["latent"].nunique()), len(one.trials)
    each = trials / latents if latents else 0
    size = f"{latents:,} {one.direction}{'' if latents == 1 else 's'} × {each:.4g}"
    runtime = {str(name): one_line(str(value), 40) for name, value in one.runtime.items()}
    given = {str(name): one_line(str(value), 30) for name, value in spec.task_args.items()}
    seed, strength = given.get("seed"), given.get("strength")
    facts = {
        "condition": one_line(one.log.condition, 60),
        "strength": f"strength {strength}" if strength else "",
        "size": size,
        "seed": f"seed {seed}" if seed else "",
        "judge": one_line(one.judge, 40),
        "temperature": f"temperature {plan.temperature:g}" if plan.temperature is not None else "",
        "length": f"{plan.max_tokens} tokens" if plan.max_tokens is not None else "",
    }
    facts |= {name: f"{name.replace('_', ' ')} {value}" for name, value in runtime.items()}
    facts |= {
        f"-T {name}": f"{name.replace('_', ' ')} {value}"
        for name, value in given.items()
        if name not in ("seed", "strength", "latents", "n_latents", "trials_per_latent")
    }
    return facts | {"time": one_line(spec.created[:16].replace("T", " "), 20)}


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
    columns = ("id", "epoch", "error", *_ABOUT, *RATES, *MEANS)
    frame = pd.DataFrame(rows, columns=None if rows else columns)
    frame["error"] = frame["error"].astype(bool)
    for name in _NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def _numbers(sample: EvalSampleSummary, scorer: str, keys: Iterable[str]) -> dict[str, float]:
    score = (sample.scores or {}).get(scorer)
    values: Mapping[str, Any] = (
        score.value if score is not None and isinstance(score.value, dict) else {}
    )
    if score is not None and "first_score" in values and "recovered" not in values:
        values = _scored_before(score, values)
    return {key: _number(values.get(key)) for key in keys}


def _scored_before(score: Score, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of an earlier version's score, with those that follow from what it stores."""
    if math.isnan(_number(values.get("multi_attempt"))):
        return values
    try:
        return {**stored_numbers(score.metadata or {}), **values}
    except (LookupError, TypeError, ValueError):
        # A foreign log's metadata may be anything; then these values are not there.
        return values


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
