"""The report: stored logs as one HTML page and CSV tables. It reads logs and loads no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["write_report"]


def write_report(
    paths: Sequence[Path], folder: Path, note: Callable[[str], None] = lambda text: None
) -> Path:
    """Make the report of some logs.

    The same logs give the same files, byte by byte.

    Args:
        paths: Logs, and folders of logs (not their subfolders).
        folder: Where to; an earlier report there is replaced.
        note: Told of logs that are left out; the page tells it as well.

    Returns:
        The page.

    Raises:
        EsrError: There is no log, one that was named cannot be read, or the folder is not free.
    """
    # Imported here: the command line loads this module without pandas and matplotlib.
    from esr_eval.report.build import build

    return build(paths, folder, note)
