"""Arrays beside a log: safetensors files that the log names by path, shapes and digest.

A log must stay small enough to open, so activations never go into it. A solver does not know
where its log will lie; so files are written to the cache, named by their content, and the hook
`esr_eval.detectors.hooks.ActivationFiles` moves them beside the log when the task ends. A reader
looks beside the log first and then in the cache: a run that was killed has lost nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval._util.cache import cache_root
from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError

STORE_KEY = "activations"
"""Where a sample's store keeps the reference to its arrays."""
FOLDER = "activations"
"""Folder beside the logs that holds their arrays."""


_saved = False


def saved_any() -> bool:
    """Whether this process has saved arrays."""
    return _saved


MOST_BYTES = 2**30
"""Of a file of arrays; the largest that this project writes are of some tens of MB."""
MOST_ARRAYS = 64
HEADER_BYTES = 2**20
"""Room for what a file says of its arrays and of itself."""
Dtype = Literal["float16", "float32", "float64", "int32", "int64"]


class SidecarRef(BaseModel):
    """What a log says of a file of arrays.

    Logs come from anywhere, and this is where they name a file to be opened: the name follows from
    the content, so a log has no say in where it lies.
    """

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="Relative to the log's folder.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    shapes: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        description="Shape of every array in the file.", min_length=1, max_length=MOST_ARRAYS
    )
    dtypes: dict[str, Dtype] = Field(
        default_factory=dict, description="Type of every array's numbers; older logs have none."
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.path != _path(self.sha256):
            raise ValueError("the file's name does not follow from its content")
        if self.dtypes and self.dtypes.keys() != self.shapes.keys():
            raise ValueError("shapes and types are of different arrays")
        if self.most_bytes > MOST_BYTES:
            raise ValueError("the arrays are larger than any that this project writes")
        return self

    @property
    def most_bytes(self) -> int:
        """How large the file can be."""
        numbers = sum(math.prod(shape) for shape in self.shapes.values())
        return numbers * np.dtype(np.float64).itemsize + HEADER_BYTES


def reference(found: object, log: str | Path) -> SidecarRef:
    """A reference as it lies in a sample's store.

    Raises:
        EsrError: It is none that this project writes.
    """
    if isinstance(found, SidecarRef):
        return found
    try:
        return SidecarRef.model_validate(found)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise EsrError(f"{log} refers to activations as no log of ours does ({why}).") from None


def _path(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:16]}.safetensors"


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
        path=_path(digest),
        sha256=digest,
        shapes={name: array.shape for name, array in packed.items()},
        dtypes={name: _dtype(array) for name, array in packed.items()},
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
        EsrError: The file is missing, lies outside the log's folder, or is not the one that the
            log refers to.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    ref = reference(ref, log)
    path = find(ref, log)
    if path is None:
        raise EsrError(f"The activations {ref.path} of {log} are missing: copy them beside it.")
    with path.open("rb") as file:
        content = file.read(ref.most_bytes + 1)
    # What is checked is what is read: the file is not opened again.
    if len(content) > ref.most_bytes or hashlib.sha256(content).hexdigest() != ref.sha256:
        raise EsrError(f"The activations {path} have changed since the log was written (sha256).")
    try:
        arrays: dict[str, NDArray[Any]] = from_bytes(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EsrError(f"The activations {path} are no arrays ({error}).") from None
    _check(ref, arrays, path)
    return arrays


def _check(ref: SidecarRef, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """That the file holds what the log says: a digest only proves that it is the log's own."""
    shapes = {name: array.shape for name, array in arrays.items()}
    dtypes = {name: str(array.dtype) for name, array in arrays.items()}
    if shapes != ref.shapes or (ref.dtypes and dtypes != ref.dtypes):
        raise EsrError(f"The activations {path} have other shapes or types than their log says.")
    if strange := sorted(set(dtypes.values()) - set(get_args(Dtype))):
        raise EsrError(f"The activations {path} hold {', '.join(strange)}: no such were written.")


def _dtype(array: NDArray[Any]) -> Dtype:
    for known in get_args(Dtype):
        if known == str(array.dtype):
            found: Dtype = known
            return found
    raise TypeError(f"activations are no {array.dtype}")


def find(ref: SidecarRef, log: str | Path) -> Path | None:
    """Where the file is: beside the log, or still in the cache; None when it is nowhere.

    Raises:
        EsrError: What lies there is a link to outside the folder.
    """
    for folder in (log_folder(log), cache_root()):
        path = folder / ref.path
        if path.is_file():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise EsrError(
                    f"The activations {path} are a link to outside the folder of {log}: copy them."
                )
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
