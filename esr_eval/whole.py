"""Files written whole or not at all, by as many processes at a time as there are."""

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; whoever reads it sees the old content or all of the new.

    Args:
        path: The file; its folder is made where there is none.
        content: What it is to hold.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two processes never write to the same unfinished file.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
