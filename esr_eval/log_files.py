"""Reading Inspect's logs: what can go wrong is told in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esr_eval.errors import EsrError


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
