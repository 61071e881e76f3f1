"""Whether the file of an SAE's weights is whole, from its header alone."""

from collections.abc import Mapping
from pathlib import Path

from esr_eval.errors import EsrError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DTYPES = ("F32", "BF16", "F16", "F64")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
SCALE = "scaling_factor"
"""Tensor of old sae-lens files: all ones, or a scale that is not in the weights."""


def check_no_pointer(file: Path) -> None:
    """Raise an `EsrError` when git-lfs has left a pointer in a file's place.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise EsrError(
                f"{file} is a git-lfs pointer, not the file itself: run 'git lfs pull' in the "
                "folder that was cloned."
            )


def check_weights(
    file: Path, shapes: Mapping[str, tuple[int, ...]], indices: str | None = None
) -> None:
    """Check that a safetensors file is whole and holds the tensors that it should.

    Args:
        file: The file.
        shapes: Names and shapes of the tensors; no others may be in it.
        indices: The tensor among them that holds whole numbers, if one does.

    Raises:
        EsrError: It is missing, damaged, or another SAE's.
    """
    from safetensors import SafetensorError, safe_open

    way_out = "download or save the SAE again."
    try:
        check_no_pointer(file)
        with safe_open(file, framework="np") as tensors:
            names = set(tensors.keys())
            found = {name: tensors.get_slice(name) for name in names}
            held = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in found.items()}
    except FileNotFoundError:
        raise EsrError(_missing(file)) from None
    except (OSError, SafetensorError) as error:
        raise EsrError(f"The SAE's weights {file} are damaged ({error}): {way_out}") from error
    if missing := sorted(shapes.keys() - names):
        raise EsrError(f"The SAE's weights {file} lack the tensor {missing[0]}: {way_out}")
    for name, shape in shapes.items():
        got, dtype = held[name]
        if got != shape:
            raise EsrError(
                f"The SAE's weights {file} do not fit its config: {name} has the shape "
                f"{list(got)} where {list(shape)} is due; {way_out}"
            )
        if dtype not in DTYPES and name != indices:
            raise EsrError(
                f"The SAE's weights {file} hold {name} as {dtype}, which are no numbers that can "
                f"be used as they are (supported: {', '.join(DTYPES)}): save the SAE in float32."
            )
    others = sorted(names - shapes.keys())
    if SCALE in others and _all_ones(file):
        others.remove(SCALE)
    if others:
        raise EsrError(
            f"The SAE's weights {file} hold the tensor {others[0]}, which an SAE of its "
            "architecture does not have, so its activations would be computed without it: fold it "
            "into the others, or correct the config."
        )


def _all_ones(file: Path) -> bool:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return bool((tensors.get_tensor(SCALE) == 1).all())


def _missing(file: Path) -> str:
    said = f"The SAE's weights {file} do not exist"
    if file.parent.is_dir():
        pickles = [one.name for one in sorted(file.parent.iterdir()) if one.suffix in PICKLES]
        if pickles:
            return (
                f"{said}, and {pickles[0]} beside it is a pickle, which could run code when it is "
                "opened and never is: save the SAE as safetensors with sae-lens (sae.save_model)."
            )
    return f"{said}: download or save the SAE again."
