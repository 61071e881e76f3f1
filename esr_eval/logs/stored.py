"""Stored logs: header and sample summaries, each file read once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalLog,
    EvalSampleSummary,
    read_eval_log,
    read_eval_log_sample_summaries,
    read_eval_log_samples,
)
from pydantic import ValidationError

from esr_eval.data.experiments import BEYOND, EXPERIMENTS, Experiment, current_id
from esr_eval.errors import EsrError
from esr_eval.logs.reading import planned_of, read_each, read_trial, reading, subject_of
from esr_eval.scorers.grader import GRADER_ROLE
from esr_eval.spec import Runtime

_ALL = (*EXPERIMENTS, *BEYOND)
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
        output: What the first sample's output says of the machine (digest of the SAE, device,
            versions); read only where it is asked for.
    """

    path: str
    header: EvalLog
    samples: list[EvalSampleSummary]
    experiment: Experiment | None
    condition: str
    output: Mapping[str, Any] = field(default_factory=dict)

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

    @property
    def status(self) -> str:
        """Inspect's status of the run."""
        return self.header.status

    @property
    def backend(self) -> str:
        """What ran the subject."""
        return str(self.header.eval.model_args.get("backend", "local"))

    @property
    def judge(self) -> str:
        """The judge that the run itself was given; it may have been scored again by another."""
        role = (self.header.eval.model_roles or {}).get(GRADER_ROLE)
        if role is not None and not isinstance(role, list):
            return role.model
        return str(self.metadata.get("judge", "?"))

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers: logs that agree in it measure the same thing."""
        about, spec = self.metadata, self.header.eval
        sampling = spec.model_generate_config.merge(self.header.plan.config)
        return {
            "task": spec.task.rpartition("/")[2],
            "task_version": spec.task_version,
            "experiment": current_id(str(about.get("experiment_id", ""))),
            "condition": about.get("condition"),
            "subject": self.subject,
            # Logs of before the runtime was kept say it by the model and its arguments.
            "runtime": _today(about.get("runtime")) or {"model": spec.model, **spec.model_args},
            # Parameters at their empty defaults are left out: new ones change nothing.
            "solvers": [
                [step.solver, {name: value for name, value in step.params.items() if value}]
                for step in self.header.plan.steps
            ],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "judge": self.judge,
        }

    @property
    def versions(self) -> dict[str, str]:
        """Libraries and device: what may move single tokens and is no setting."""
        versions = dict(self.output.get("versions") or {})
        return {"device": str(self.output.get("device"))} | versions


def _today(runtime: Any) -> Any:
    """A log's runtime with the defaults of fields that came later; anything else as it is."""
    try:
        return Runtime.model_validate(runtime).model_dump(mode="json", exclude_none=True)
    except ValidationError:
        return runtime


def read_logs(paths: Sequence[Path], note: Callable[[str], None]) -> list[StoredLog]:
    """Read logs and folders of logs (and the folders within), by experiment and then by time.

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
        raise EsrError(
            f"There is no log in {where}, sub-folders included: name logs, or folders that hold "
            "some."
        )
    return sorted(logs, key=_order)


def read_stored(path: str | Path, *, with_output: bool = False) -> StoredLog:
    """Read one log, of its samples the summaries alone, so that long logs stay quick.

    Args:
        path: The log.
        with_output: Read one sample in full, for `StoredLog.output`.

    Raises:
        EsrError: There is no such log, it is not one of Inspect's, or none of this project's.
    """
    path, output = str(path), {}
    with reading(path):
        header = read_eval_log(path, header_only=True)
        samples = read_eval_log_sample_summaries(path)
        if with_output:
            first = next(read_eval_log_samples(path, all_samples_required=False), None)
            output = dict((first.output.metadata or {}) if first else {})
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
    return StoredLog(path, header, samples, experiment, str(label), output)


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
    wanted = current_id(str(about.get("experiment_id", name)))
    if wanted == "esr" and any(one.metadata.get("condition") == "unsteered" for one in samples):
        wanted = "no_steering"
    if wanted == "prefill_control" and (header.eval.task_args or {}).get("mirror"):
        wanted = "prefill_mirror"
    return next((one for one in _ALL if one.id == wanted), None)


def _order(log: StoredLog) -> tuple[int, str, str]:
    place = _ALL.index(log.experiment) if log.experiment else len(_ALL)
    return place, log.header.eval.created, log.file
