"""Arrays beside a log: safetensors files that the log names by path, shapes and digest.

A log must stay small enough to open, so activations never go into it. A solver does not know
where its log will lie; so files are written to the cache, named by their content, and the hook
`esr_eval.hooks.ActivationFiles` moves them beside the log when the task ends. A reader looks
beside the log first and then in the cache: a run that was killed has lost nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from esr_eval.cache import cache_root
from esr_eval.digests import file_sha256
from esr_eval.errors import EsrError
from esr_eval.scratch import write_whole

STORE_KEY = "activations"
"""Where a sample's store keeps the reference to its arrays."""
FOLDER = "activations"
"""Folder beside the logs that holds their arrays."""


_saved = False


def saved_any() -> bool:
    """Whether this process has saved arrays."""
    return _saved


class SidecarRef(BaseModel):
    """What a log says of a file of arrays."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the log's folder.")
    sha256: str
    shapes: dict[str, tuple[int, ...]] = Field(description="Shape of every array in the file.")


def save(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> SidecarRef:
    """Keep arrays in a file named by its content.

    Args:
        arrays: Numeric arrays by name.
        about: What the file says of itself (sample, runtime, layer).
    """
    from safetensors.numpy import save as to_bytes

    global _saved
    _saved = True
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = to_bytes(packed, metadata={"about": json.dumps(dict(about), sort_keys=True)})
    digest = hashlib.sha256(content).hexdigest()
    ref = SidecarRef(
        path=f"{FOLDER}/{digest[:16]}.safetensors",
        sha256=digest,
        shapes={name: array.shape for name, array in packed.items()},
    )
    # Whole or not at all: a file cut short by a crash would bear a name it does not deserve.
    write_whole(_staged(ref), content)
    return ref


def load(ref: SidecarRef | Mapping[str, Any], log: str | Path) -> dict[str, NDArray[Any]]:
    """Read the arrays that a log refers to.

    Args:
        ref: The reference, or as it lies in a sample's store.
        log: The log's location.

    Raises:
        EsrError: The file is missing, or is not the one that the log refers to.
    """
    from safetensors.numpy import load_file

    ref = ref if isinstance(ref, SidecarRef) else SidecarRef.model_validate(ref)
    path = find(ref, log)
    if path is None:
        raise EsrError(f"The activations {ref.path} of {log} are missing: copy them beside it.")
    if file_sha256(path) != ref.sha256:
        raise EsrError(f"The activations {path} have changed since the log was written (sha256).")
    arrays: dict[str, NDArray[Any]] = load_file(path)
    return arrays


def find(ref: SidecarRef, log: str | Path) -> Path | None:
    """Where the file is: beside the log, or still in the cache; None when it is nowhere."""
    for path in (log_folder(log) / ref.path, _staged(ref)):
        if path.is_file():
            return path
    return None


def log_folder(log: str | Path) -> Path:
    """The folder of a log on this machine.

    Raises:
        EsrError: The log lies elsewhere.
    """
    location = str(log).removeprefix("file://")
    if "://" in location:
        raise EsrError(f"Activations are read beside logs on this machine: copy {log} here first.")
    return Path(location).resolve().parent


def put_beside(ref: SidecarRef, log: str | Path) -> None:
    """Move an array file from the cache to the log's folder, unless it lies there."""
    target, staged = log_folder(log) / ref.path, _staged(ref)
    if target.is_file() or not staged.is_file():
        return
    write_whole(target, staged.read_bytes())
    staged.unlink(missing_ok=True)


def _staged(ref: SidecarRef) -> Path:
    return cache_root() / ref.path
