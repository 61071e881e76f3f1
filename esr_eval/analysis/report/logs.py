"""Stored logs as the report needs them: header and sample summaries, each file read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalLog,
    EvalSampleSummary,
    list_eval_logs,
    read_eval_log,
    read_eval_log_sample_summaries,
)

from esr_eval.catalogue import EXPERIMENTS, Experiment
from esr_eval.errors import EsrError
from esr_eval.log_files import planned_of, reading, subject_of

_TASKS = {
    "boost_sweep": "boost_sweep",
    "meta_prompt": "meta_prompts",
    "prefill_control": "prefill",
    "held_out": "held_out",
}
"""Experiments of logs that do not name one (version 0.1), by task."""


@dataclass(frozen=True)
class StoredLog:
    """One log: its header, and a summary of every sample.

    Attributes:
        path: Where it lies.
        header: The log without its samples.
        samples: Summaries: values of the scores, trial, errors; no responses.
        experiment: Which experiment it belongs to; None when it is none of the catalogue's.
        condition: What tells it from the experiment's other logs.
    """

    path: str
    header: EvalLog
    samples: list[EvalSampleSummary]
    experiment: Experiment | None
    condition: str

    @property
    def metadata(self) -> dict[str, Any]:
        """What the task said of itself."""
        return self.header.eval.metadata or {}

    @property
    def subject(self) -> str:
        """Name of the model under test."""
        return subject_of(self.header)

    @property
    def planned(self) -> int:
        """How many samples the run was to have."""
        return planned_of(self.header)

    @property
    def file(self) -> str:
        """The log's file name, without the folder that it happens to lie in."""
        return self.path.rstrip("/").rpartition("/")[2]


def read_logs(paths: Sequence[Path], note: Callable[[str], None]) -> list[StoredLog]:
    """Read logs and folders of logs (not their subfolders), by experiment and then by time.

    A run that was interrupted and finished by `inspect eval-retry` leaves two logs; only the
    later one is taken.

    Args:
        paths: Logs and folders.
        note: Told of the logs that are left out.

    Raises:
        EsrError: A log that is named cannot be read, or there is none at all.
    """
    found: dict[str, StoredLog] = {}
    for path in paths:
        if not path.is_dir():
            log = read_stored(str(path))
            found.setdefault(_identity(log.path), log)
            continue
        for info in list_eval_logs(str(path), recursive=False, descending=False):
            if _identity(info.name) in found:
                continue
            try:
                log = read_stored(info.name)
            except EsrError as error:
                note(f"Left out: {without_place(error.message, info.name)}")
                continue
            found[_identity(log.path)] = log
    logs = _without_superseded(list(found.values()), note)
    if not logs:
        where = ", ".join(map(str, paths)) or "no place"
        raise EsrError(f"There is no log in {where}: name logs, or folders that hold some.")
    return sorted(logs, key=_order)


def read_stored(path: str) -> StoredLog:
    """Read one log.

    Raises:
        EsrError: There is no such log, or it is not one of Inspect's.
    """
    with reading(path):
        header = read_eval_log(path, header_only=True)
        samples = read_eval_log_sample_summaries(path)
    path = path.removeprefix("file://")
    samples.sort(key=lambda sample: (str(sample.id), sample.epoch))
    experiment = _experiment(header, samples)
    about = header.eval.metadata or {}
    label = about.get("condition") or (experiment.id if experiment else header.eval.task)
    return StoredLog(path, header, samples, experiment, str(label))


def without_place(message: str, path: str) -> str:
    """A message that names the log by its file alone: a report is read on other machines, too."""
    file = path.rstrip("/").rpartition("/")[2]
    return message.replace(path, file).replace(path.removeprefix("file://"), file)


def _identity(path: str) -> str:
    return str(Path(path.removeprefix("file://")).resolve()) if "://" not in path[8:] else path


def _experiment(header: EvalLog, samples: list[EvalSampleSummary]) -> Experiment | None:
    about = header.eval.metadata or {}
    name = header.eval.task.rpartition("/")[2].replace("-", "_")
    wanted = about.get("experiment_id") or _TASKS.get(name)
    if wanted is None and name == "esr":
        unsteered = any(sample.metadata.get("condition") == "unsteered" for sample in samples)
        wanted = "no_steering" if unsteered else "main"
    if wanted == "prefill" and (header.eval.task_args or {}).get("mirror"):
        wanted = "prefill_mirror"
    return next((one for one in EXPERIMENTS if one.id == wanted), None)


def _without_superseded(logs: list[StoredLog], note: Callable[[str], None]) -> list[StoredLog]:
    kept = []
    for log in logs:
        spec = log.header.eval
        later = [
            other
            for other in logs
            if other.header.eval.task_id == spec.task_id
            and other.header.eval.eval_id != spec.eval_id
            and (other.header.eval.created, other.path) > (spec.created, log.path)
        ]
        if later and log.header.status != "success":
            note(f"Left out: {log.file} was finished by {later[-1].file}.")
        else:
            kept.append(log)
    return kept


def _order(log: StoredLog) -> tuple[int, str, str]:
    place = EXPERIMENTS.index(log.experiment) if log.experiment else len(EXPERIMENTS)
    return place, log.header.eval.created, log.file
