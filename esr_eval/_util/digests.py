"""Digests of files and folders: what a log or record names so that a change shows."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from esr_eval.spec import fingerprint

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".npz", ".pt")
SUMS_FILE = "SHA256SUMS"
"""Digests of a folder's files, as `sha256sum` writes and checks them. It has no suffix, so
`folder_digest` passes it over."""


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
    (folder / SUMS_FILE).write_text("".join(lines), "utf-8")


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
