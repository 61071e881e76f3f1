"""Stored logs as the report needs them: header and sample summaries, each file read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalLog,
    EvalSampleSummary,
    read_eval_log,
    read_eval_log_sample_summaries,
)

from esr_eval.data.experiments import EXPERIMENTS, Experiment
from esr_eval.errors import EsrError
from esr_eval.logs.reading import planned_of, read_each, read_trial, reading, subject_of

_TASKS = {
    "boost_sweep": "boost_sweep",
    "meta_prompt": "meta_prompts",
    "prefill_control": "prefill",
    "held_out": "held_out",
}
"""Experiments of logs that do not name one (version 0.1), by task."""

WITHOUT_TRIALS = ("detectors",)
"""Experiments whose samples are no trials."""


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

    Which logs count is said in `esr_eval.logs.reading.read_each`.

    Args:
        paths: Logs and folders.
        note: Told of the logs that are left out.

    Raises:
        EsrError: A log that is named cannot be read, or there is none at all.
    """
    places = [f"{place}/" for path in paths for place in (path.resolve(), path.absolute(), path)]

    def told(text: str) -> None:
        # A report is read on other machines, too: logs are named by their files alone.
        for place in places:
            text = text.replace(place, "")
        note(text)

    logs = read_each(paths, read_stored, told)
    if not logs:
        where = ", ".join(map(str, paths)) or "no place"
        raise EsrError(f"There is no log in {where}: name logs, or folders that hold some.")
    return sorted(logs, key=_order)


def read_stored(path: str) -> StoredLog:
    """Read one log.

    Raises:
        EsrError: There is no such log, it is not one of Inspect's, or none of this project's.
    """
    with reading(path):
        header = read_eval_log(path, header_only=True)
        samples = read_eval_log_sample_summaries(path)
        samples.sort(key=lambda sample: (str(sample.id), sample.epoch))
        experiment = _experiment(header, samples)
        about = header.eval.metadata or {}
        label = about.get("condition") or (experiment.id if experiment else header.eval.task)
        if experiment is None and not (samples and _has_trials(samples)):
            raise EsrError(
                f"{path} ({header.eval.task}) is no experiment of the paper and holds no ESR trial."
            )
        if experiment is not None and experiment.id not in WITHOUT_TRIALS:
            for sample in samples:
                read_trial(path, sample)
    return StoredLog(path, header, samples, experiment, str(label))


def _has_trials(samples: list[EvalSampleSummary]) -> bool:
    try:
        return all(read_trial("the log", sample) for sample in samples)
    except EsrError:
        return False


def without_place(message: str, path: str) -> str:
    """A message that names the log by its file alone: a report is read on other machines, too."""
    file = path.rstrip("/").rpartition("/")[2]
    return message.replace(path, file).replace(path.removeprefix("file://"), file)


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


def _order(log: StoredLog) -> tuple[int, str, str]:
    place = EXPERIMENTS.index(log.experiment) if log.experiment else len(EXPERIMENTS)
    return place, log.header.eval.created, log.file
