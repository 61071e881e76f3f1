"""What all readers of stored logs share: errors as one sentence, scorers' names, who ran."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inspect_ai.log import EvalLog

from esr_eval.errors import EsrError

ATTEMPTS, IMPROVEMENT, REGIONS = (
    re.compile(rf"(?:.*/)?{name}\d*") for name in ("attempts", "improvement", "regions")
)
"""The scorers' names; scores that `inspect score` appends to a log get a number behind it."""


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
        raise EsrError(f"{path} cannot be read as an Inspect log ({why}).") from error


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
