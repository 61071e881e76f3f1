"""Files and folders written whole, and digests by which a change of them shows.

What is written is made under another name first, with the permissions of the user's umask:
`tempfile` makes what only its owner can read, and so does safetensors; but a cache may be shared by
a lab, and a folder of logs is read by others.
"""

import hashlib
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from esr_eval.spec import fingerprint

logger = logging.getLogger(__name__)
T = TypeVar("T")

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".npz", ".pt")
SUMS_FILE = "SHA256SUMS"
"""Digests of a folder's files, as `sha256sum` writes and checks them. It has no suffix, so
`folder_digest` passes it over."""
LOADING = threading.RLock()
"""Held while transformers loads weights. It replaces methods of its classes meanwhile; where two
loads overlap the wrong one is put back, and tied weights stay untied for good."""


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


def kept(path: Path, read: Callable[[str], T]) -> T | None:
    """What a file of the cache holds; None where there is none, or a damaged one, which is told.

    Args:
        path: The file.
        read: Reads its text, or raises a `ValueError`.
    """
    try:
        return read(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("Found anew, as %s is damaged: %s.", path, str(error).partition("\n")[0])
        return None


def keep(path: Path, data: object) -> None:
    """Write plain data into the cache, for `kept`; that it cannot be written is told."""
    try:
        write_whole(path, json.dumps(data, indent=1).encode())
    except OSError as error:
        logger.warning("Not kept for the next run: %s (%s).", path, error.strerror)


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


def file_sha256(path: Path) -> str:
    """Digest of a file, read again only when it has been touched since.

    A changed file whose size and date are as before shows too: nobody can set back the time of
    the last change of its entry (ctime).
    """
    status = path.stat()
    touched = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    return _digest(path.absolute(), touched)


def folder_digest(folder: Path) -> str:
    """Digest of the weights and configuration in a folder; its other files do not count."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            # By content: a checkout may change the ends of lines.
            found[path.name] = fingerprint({"content": json.loads(path.read_text("utf-8"))})
        elif path.suffix in WEIGHT_SUFFIXES:
            found[path.name] = file_sha256(path)
    return fingerprint(found)


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Write down the digests of files in a folder, to be checked with `read_sums` later."""
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    write_whole(folder / SUMS_FILE, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Digests that were written down in a folder, by file; none where none can be read."""
    try:
        text = (folder / SUMS_FILE).read_text("utf-8")
    except (OSError, ValueError):
        return {}
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.M)}


@lru_cache
def _digest(path: Path, touched: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
