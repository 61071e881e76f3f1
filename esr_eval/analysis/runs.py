"""One log of the main task, read for comparison: what ran, its metrics, its trials."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalLog,
    EvalSampleSummary,
    EvalScore,
    list_eval_logs,
    read_eval_log,
    read_eval_log_sample_summaries,
)

from esr_eval.errors import EsrError

SCORER = "attempts"
GRADER_ROLE = "grader"


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval, where the log has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TrialKey:
    """What makes two trials of different logs the same but for what the logs vary."""

    latent: int
    topic: str
    seed: int
    epoch: int


@dataclass(frozen=True)
class Run:
    """One log."""

    path: str
    subject: str
    condition: str
    backend: str
    judge: str
    total: int
    completed: int
    status: str
    estimates: dict[str, Estimate]
    first_scores: dict[TrialKey, float]


def read_runs(paths: Sequence[Path], note: Callable[[str], None]) -> list[Run]:
    """Read logs and whole folders of logs, a folder's in the order in which they were made.

    Args:
        paths: Logs and folders.
        note: Told of the logs in a folder that are left out, such as those of other tasks.

    Raises:
        EsrError: A log cannot be used, or a folder has none that can.
    """
    runs: list[Run] = []
    for path in paths:
        if not path.is_dir():
            runs.append(read_run(path))
            continue
        before = len(runs)
        for log in list_eval_logs(str(path), recursive=False, descending=False):
            try:
                runs.append(read_run(log.name))
            except EsrError as error:
                note(f"Left out: {error}")
        if len(runs) == before:
            raise EsrError(f"There is no log with scores of esr_eval/attempts in {path}.")
    return runs


def read_run(path: str | Path) -> Run:
    """Read a log; of its samples only the summaries, so that long logs stay quick.

    Raises:
        EsrError: The file is no Inspect log, or has no scores of `esr_eval/attempts`.
    """
    try:
        header = read_eval_log(str(path), header_only=True)
        samples = read_eval_log_sample_summaries(str(path))
    except FileNotFoundError:
        raise EsrError(f"There is no log {path}.") from None
    except Exception as error:
        # Whatever the reader raises on a file that is no log; its own message is kept.
        raise EsrError(f"{path} cannot be read as an Inspect log ({error}).") from error
    scores = [
        score
        for score in (header.results.scores if header.results else [])
        if score.scorer.rpartition("/")[2] == SCORER
    ]
    if not scores:
        raise EsrError(
            f"{path} has no scores of esr_eval/attempts (status: {header.status}): finish it with "
            "`inspect eval-retry`, or score it with `inspect score --scorer esr_eval/attempts`."
        )
    results = header.results
    assert results is not None
    return Run(
        path=str(path),
        subject=str((header.eval.metadata or {}).get("subject", header.eval.model)),
        condition=_condition(samples),
        backend=str(header.eval.model_args.get("backend", "local")),
        judge=_judge(header, samples),
        total=results.total_samples,
        completed=results.completed_samples,
        status=header.status,
        estimates={score.name: found for score in scores if (found := _estimate(score))},
        first_scores=_first_scores(samples),
    )


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


def _judge(header: EvalLog, samples: list[EvalSampleSummary]) -> str:
    """The judge that scored: what the scores say, for a log may have been scored again."""
    found = {
        str(score.metadata["judge"])
        for sample in samples
        if (score := _score(sample)) is not None and score.metadata and "judge" in score.metadata
    }
    if found:
        return ", ".join(sorted(found))
    role = (header.eval.model_roles or {}).get(GRADER_ROLE)
    if role is not None and not isinstance(role, list):
        return role.model
    return str((header.eval.metadata or {}).get("judge", "?"))


def _score(sample: EvalSampleSummary) -> Any:
    for name, score in (sample.scores or {}).items():
        if name.rpartition("/")[2] == SCORER:
            return score
    return None


def _first_scores(samples: list[EvalSampleSummary]) -> dict[TrialKey, float]:
    """First-attempt scores of the trials that have one."""
    found = {}
    for sample in samples:
        score, trial = _score(sample), sample.metadata
        if score is None or not isinstance(score.value, dict):
            continue
        first = score.value.get("first_score")
        if isinstance(first, int | float) and not math.isnan(first) and "latent" in trial:
            key = TrialKey(trial["latent"], trial["topic"], trial["seed"], sample.epoch)
            found[key] = float(first)
    return found
