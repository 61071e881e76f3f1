"""What all readers of stored logs share: which logs count, errors as one sentence, who ran."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from inspect_ai.log import (
    EvalLog,
    EvalSample,
    EvalSampleSummary,
    list_eval_logs,
    read_eval_log,
    read_eval_log_sample_summaries,
)
from pydantic import ValidationError

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError

ATTEMPTS, IMPROVEMENT, REGIONS, CONTINUATION = (
    re.compile(rf"(?:.*/)?{name}\d*")
    for name in ("attempts", "improvement", "regions", "continuation")
)
"""The scorers' names; scores that `inspect score` appends to a log get a number behind it."""

Note = Callable[[str], None]
T = TypeVar("T")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within it, whatever Inspect's readers raise becomes an `EsrError`.

    Args:
        path: The log that is read, a file or a URL.

    Raises:
        EsrError: There is no such log, or it is not one of Inspect's.
    """
    try:
        yield
    except EsrError:
        raise
    except Exception as error:  # Inspect's readers raise whatever zip, JSON and files raise
        # Of a path without a log's ending they say only that no reader knows it.
        missing = "://" not in str(path) and not Path(path).exists()
        if missing or isinstance(error, FileNotFoundError):
            raise EsrError(f"There is no log {path}.") from None
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, KeyError):
            why = f"it lacks {why}"
        if Path(path).is_file() and not Path(path).stat().st_size:
            why = "it is empty"
        raise EsrError(f"{path} cannot be read as an Inspect log ({why}).") from error


def read_each(
    paths: Sequence[str | Path],
    read: Callable[[str], T],
    note: Note,
) -> list[T]:
    """Read logs and folders of logs, each run once: the rule of which logs count.

    `inspect eval-retry` and eval sets leave a log for every try of a run; these have its task id
    in common. The one with the most complete samples counts, of several the latest; a copy of a
    log counts once. Logs of one try that were scored differently all count, and so do two runs of
    one task.

    Args:
        paths: Logs, and folders of logs in the order in which they were made; folders within them
            are read, too, as `inspect log list` reads them.
        read: Reads one log, or raises an `EsrError` that says why it is of no use here.
        note: Told of what is left out: retried logs, copies, and files in folders that are of no
            use.

    Raises:
        EsrError: A log that was named is of no use.
    """
    runs: dict[tuple[str, str], list[_Log]] = {}
    for log in _found(paths, note):
        spec = log.header.eval
        runs.setdefault((spec.task_id or spec.eval_id or log.path, spec.model), []).append(log)
    counted: list[tuple[int, T]] = []
    for tries in runs.values():
        counted += _counted(tries, read, note)
    return [value for _, value in sorted(counted, key=lambda one: one[0])]


def read_only(path: str | Path, read: Callable[[str], T], note: Note) -> T:
    """Read a log, or the only one of use in a folder.

    Raises:
        EsrError: It is of no use, or the folder has none that is, or several.
    """
    found = read_each([path], read, note)
    if len(found) != 1:
        count = "several logs" if found else "no log"
        raise EsrError(f"{path} holds {count} that can be used here: name the one to read.")
    return found[0]


class _Log(NamedTuple):
    """A log that can be opened, in the order of the user's arguments."""

    place: int
    path: str
    named: bool
    header: EvalLog

    def same_scores(self, other: "_Log") -> bool:
        """Whether it is a copy, in whatever format, and not scored again."""
        first, second = self.header.results, other.header.results
        if first is None or second is None:
            return first is second
        # Results hold a few numbers, in which two judges may agree.
        return first.model_dump_json() == second.model_dump_json() and (
            _scores(self.path) == _scores(other.path)
        )


def _scores(path: str) -> dict[tuple[str, int], str]:
    """Every sample's scores in a form that equals itself, NaN and all."""
    with reading(path):
        samples = read_eval_log_sample_summaries(path)
    return {
        (str(one.id), one.epoch): repr(
            {name: (score.value, score.answer) for name, score in (one.scores or {}).items()}
        )
        for one in samples
    }


def _complete(log: _Log) -> int:
    """How many samples came to an end without an error."""
    try:
        with reading(log.path):
            samples = read_eval_log_sample_summaries(log.path)
    except EsrError:
        return 0
    return sum(sample.completed and sample.error is None for sample in samples)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _found(paths: Sequence[str | Path], note: Note) -> Iterator[_Log]:
    seen: set[str] = set()
    for path, named in _files(paths):
        identity = path if "://" in path else str(Path(path).resolve())
        if identity in seen:
            continue
        seen.add(identity)
        try:
            with reading(path):
                header = read_eval_log(path, header_only=True)
                if header.status == "started" and not read_eval_log_sample_summaries(path):
                    raise EsrError(f"{path} was started and holds no sample yet.")
        except EsrError as error:
            if named:
                raise
            note(f"Left out: {error}")
            continue
        yield _Log(len(seen), path, named, header)


def _files(paths: Sequence[str | Path]) -> Iterator[tuple[str, bool]]:
    for path in map(str, paths):
        if "://" in path or not Path(path).is_dir():
            yield path.removeprefix("file://"), True
            continue
        for info in list_eval_logs(path, recursive=True, descending=False):
            yield info.name.removeprefix("file://"), False


def _counted(tries: list[_Log], read: Callable[[str], T], note: Note) -> Iterator[tuple[int, T]]:
    """Of the logs of one run, those that count."""
    complete = {log.place: _complete(log) if len(tries) > 1 else 0 for log in tries}
    best: _Log | None = None
    kept: list[_Log] = []
    retried: list[_Log] = []
    useless: list[tuple[_Log, EsrError]] = []
    for log in sorted(
        tries, key=lambda log: (complete[log.place], _time(log.header.eval.created)), reverse=True
    ):
        if best is not None and (
            log.header.eval.eval_id != best.header.eval.eval_id
            or complete[log.place] != complete[best.place]
        ):
            retried.append(log)
            continue
        if copied := next((one for one in kept if one.same_scores(log)), None):
            note(f"Left out: {log.path} is a copy of {copied.path}.")
            continue
        try:
            yield log.place, read(log.path)
        except EsrError as error:
            useless.append((log, error))
            continue
        best = best or log
        kept.append(log)
    for log, why in useless:
        if best is None and log.named:
            raise why
        note(f"Left out: {why}")
    if best is not None and retried:
        were = "1 log" if len(retried) == 1 else f"{len(retried)} logs"
        names = ", ".join(log.path for log in sorted(retried, key=lambda log: log.place))
        note(f"{were} left out: retried as {best.path}: {names}.")


def read_trial(
    path: str | Path, sample: EvalSampleSummary | EvalSample, way_out: str = "."
) -> Trial:
    """The trial of a log's sample.

    Raises:
        EsrError: The sample is none of this project's.
    """
    try:
        return Trial.model_validate(sample.metadata)
    except ValidationError:
        raise EsrError(f"Sample {sample.id} of {path} carries no ESR trial{way_out}") from None


def source_of(header: EvalLog) -> dict[str, str]:
    """What a new log says of the log its trials came from."""
    spec = header.eval
    return {"eval_id": spec.eval_id, "task": spec.task, "model": spec.model}


def subject_of(header: EvalLog) -> str:
    """Name of the model under test."""
    return str((header.eval.metadata or {}).get("subject", header.eval.model))


def planned_of(header: EvalLog) -> int:
    """How many samples the run was to have, epochs counted."""
    dataset, epochs = header.eval.dataset, header.eval.config.epochs or 1
    # Under --limit the dataset still counts all of its samples; the ids are those that run.
    ids = dataset.sample_ids
    return (len(ids) if ids is not None else dataset.samples or 0) * epochs
