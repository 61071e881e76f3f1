"""Files and folders made under another name first, with the permissions of the user's umask.

`tempfile` makes what only its owner can read, and so does safetensors; but a cache may be shared by
a lab, and a folder of logs is read by others.
"""

import os
import uuid
from pathlib import Path


def scratch_name(target: Path) -> Path:
    """A name of its own beside the target: two processes never write to the same unfinished one."""
    return target.with_name(f".{uuid.uuid4().hex}.tmp")


def write_whole(target: Path, content: bytes) -> None:
    """Write a file; whoever reads it sees the old content or all of the new.

    Args:
        target: The file; its folder is made where there is none.
        content: What it is to hold.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = scratch_name(target)
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def scratch_folder(target: Path) -> Path:
    """A new folder beside the target, to be filled, given to `share` and renamed to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = scratch_name(target)
    folder.mkdir()
    return folder


def share(folder: Path) -> None:
    """Give the files in a folder that `mkdir` made the permissions that the folder has."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
