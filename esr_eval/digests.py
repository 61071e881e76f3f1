"""Digests of files and folders: what a log or record names so that a change shows."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from esr_eval.spec import fingerprint

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".npz", ".pt")


def file_sha256(path: Path) -> str:
    """Digest of a file, read again only when its size or date has changed."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


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


@lru_cache
def _digest(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
