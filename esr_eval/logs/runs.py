"""One log of the main task, read for comparison: what ran, its metrics, its trials."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inspect_ai.log import (
    EvalLog,
    EvalSampleSummary,
    EvalScore,
    read_eval_log,
    read_eval_log_sample_summaries,
)
from inspect_ai.scorer import Score
from numpy.typing import NDArray

from esr_eval.errors import EsrError
from esr_eval.logs.reading import ATTEMPTS, read_each, read_trial, reading, subject_of
from esr_eval.scorers.grader import GRADER_ROLE
from esr_eval.stats.rates import Estimate, Floats
from esr_eval.text import one_line


@dataclass(frozen=True)
class TrialKey:
    """What makes two trials of different logs the same but for what the logs vary."""

    latent: int
    topic: str
    seed: int
    epoch: int


@dataclass(frozen=True)
class Run:
    """One log as one judge scored it."""

    path: str
    scorer: str
    subject: str
    condition: str
    backend: str
    judge: str
    total: int
    completed: int
    status: str
    estimates: dict[str, Estimate]
    first_scores: dict[TrialKey, float]
    unscored: dict[str, int]


def read_runs(paths: Sequence[Path], note: Callable[[str], None]) -> list[Run]:
    """Read logs and whole folders of logs, a folder's in the order in which they were made.

    Args:
        paths: Logs and folders.
        note: Told of the logs that are left out, such as those of other tasks in a folder.

    Raises:
        EsrError: A log that is named cannot be used, or there is none that can.
    """
    runs = [run for found in read_each(paths, read_log, note) for run in found]
    if not runs:
        where = ", ".join(map(str, paths))
        raise EsrError(f"There is no log with scores of esr_eval/attempts in {where}.")
    return runs


def read_log(path: str | Path) -> list[Run]:
    """Read a log: one run, or several where it was scored again with `--action append`.

    Of the samples only the summaries are read, so that long logs stay quick.

    Raises:
        EsrError: The file is no Inspect log, or has no scores of `esr_eval/attempts`.
    """
    with reading(path):
        header = read_eval_log(str(path), header_only=True)
        samples = read_eval_log_sample_summaries(str(path))
        for sample in samples:
            read_trial(path, sample)
        scores = header.results.scores if header.results else []
        scorers = dict.fromkeys(s.scorer for s in scores if ATTEMPTS.fullmatch(s.scorer))
        if not scorers:
            raise EsrError(
                f"{path} has no scores of esr_eval/attempts (status: {header.status}): finish it "
                "with `inspect eval-retry`, or score it with `inspect score --scorer "
                "esr_eval/attempts`."
            )
        return [_run(str(path), header, samples, scorer) for scorer in scorers]


def _run(path: str, header: EvalLog, samples: list[EvalSampleSummary], scorer: str) -> Run:
    results = header.results
    assert results is not None
    scores = [score for score in results.scores if score.scorer == scorer]
    return Run(
        path=path,
        scorer=scorer,
        subject=subject_of(header),
        condition=_condition(samples),
        backend=str(header.eval.model_args.get("backend", "local")),
        judge=judge_of(header, samples, scorer),
        total=results.total_samples,
        completed=results.completed_samples,
        status=header.status,
        estimates={score.name: found for score in scores if (found := _estimate(score))},
        first_scores=_first_scores(samples, scorer),
        unscored=reasons(samples, scorer),
    )


def reasons(samples: Sequence[EvalSampleSummary], scorer: str) -> dict[str, int]:
    """Why verdicts of a scorer could not be used, with counts, the most frequent first."""
    found: Counter[str] = Counter()
    for sample in samples:
        score = _score(sample, scorer)
        values = score.value if score is not None else None
        if score is not None and isinstance(values, dict) and values.get("unscored") == 1:
            why = (score.metadata or {}).get("unscored_because")
            found[one_line(str(why), 40) if why else "no reason given"] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def told_reasons(found: Mapping[str, int]) -> str:
    """Reasons with their counts as a phrase: `3 invalid_json, 1 truncated`."""
    return ", ".join(f"{count:,} {reason}" for reason, count in found.items())


def _estimate(score: EvalScore) -> Estimate | None:
    """The point estimate and, where there is one, the interval among a score's metrics."""
    low = high = point = None
    for name, found in score.metrics.items():
        leaf, value = name.rpartition("/")[2], float(found.value)
        if leaf.endswith("lower"):
            low = value
        elif leaf.endswith("upper"):
            high = value
        elif leaf == "mean":
            point = value
    # Inspect's mean of nothing is 0; the interval of nothing is NaN, and tells them apart.
    if point is None or any(bound is not None and math.isnan(bound) for bound in (point, low)):
        return None
    return Estimate(point, low, high)


def _condition(samples: list[EvalSampleSummary]) -> str:
    found = {str(sample.metadata.get("condition", "?")) for sample in samples}
    return "/".join(sorted(found)) or "?"


def judge_of(header: EvalLog, samples: Sequence[EvalSampleSummary], scorer: str) -> str:
    """The judge that scored: what the scores say, for a log may have been scored again."""
    scores = (_score(sample, scorer) for sample in samples)
    details = (score.metadata or {} for score in scores if score is not None)
    found = {str(detail["judge"]) for detail in details if "judge" in detail}
    if found:
        return ", ".join(sorted(found))
    return bound_judge(header)


def bound_judge(header: EvalLog) -> str:
    """The judge that the run itself was given."""
    role = (header.eval.model_roles or {}).get(GRADER_ROLE)
    if role is not None and not isinstance(role, list):
        return role.model
    return str((header.eval.metadata or {}).get("judge", "?"))


def _score(sample: EvalSampleSummary, scorer: str) -> Score | None:
    return (sample.scores or {}).get(scorer.rpartition("/")[2])


def _first_scores(samples: list[EvalSampleSummary], scorer: str) -> dict[TrialKey, float]:
    """First-attempt scores of the trials that have one."""
    found = {}
    for sample in samples:
        score, trial = _score(sample, scorer), sample.metadata
        if score is None or not isinstance(score.value, dict):
            continue
        first = score.value.get("first_score")
        if isinstance(first, int | float) and not math.isnan(first) and "latent" in trial:
            key = TrialKey(trial["latent"], trial["topic"], trial["seed"], sample.epoch)
            found[key] = float(first)
    return found


def shared_trials(
    first: Mapping[TrialKey, float], second: Mapping[TrialKey, float]
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Values of the trials that both conditions have, in one order, and their latents.

    Trials pair by latent, topic, seed and epoch; those with NaN in either condition drop out.
    """
    keys = [key for key in first if key in second and not np.isnan((first[key], second[key])).any()]
    keys.sort(key=lambda key: (key.latent, key.topic, key.seed, key.epoch))
    return (
        np.array([first[key] for key in keys], dtype=float),
        np.array([second[key] for key in keys], dtype=float),
        np.array([key.latent for key in keys], dtype=np.int64),
    )
