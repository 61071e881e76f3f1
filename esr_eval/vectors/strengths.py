"""Which strength each concept vector is added with: calibrated, a multiple of that, or a number."""

import shlex
from collections.abc import Sequence

from esr_eval.calibration.boosts import parse_strength
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.subjects import embedded_path, subjects
from esr_eval.vectors.file import VectorFile


def vector_strengths(
    strength: str | float, file: VectorFile, chosen: Sequence[Latent], grader: str
) -> dict[int, float]:
    """The strength of every vector by its index, in units of the mean residual norm.

    Args:
        strength: `calibrated`, a number, or a multiple of the calibrated strength (`1.5x`).
        file: Holds the calibrated strengths.
        chosen: Which vectors.
        grader: The judge of this run; strengths found by another judge's scores are not its.

    Raises:
        EsrError: The strength is none of these, or was not calibrated by this judge.
    """
    factor, fixed = parse_strength(strength)
    if fixed is not None:
        return {vector.index: fixed for vector in chosen}
    calibration = file.info.calibration or {}
    again = _way_out(file, grader)
    if calibration and calibration.get("grader") != grader:
        raise EsrError(
            f"The strengths in {file.path} were found with the judge {calibration.get('grader')}, "
            f"but {grader} judges this run: calibrate with it ({again})."
        )
    found = {vector.index: file.info.concepts[vector.index].strength for vector in chosen}
    missing = [vector.label for vector in chosen if found[vector.index] is None]
    if missing:
        raise EsrError(f"{file.path} has no strength for {', '.join(missing)}: run {again}.")
    return {index: factor * value for index, value in found.items() if value is not None}


def _way_out(file: VectorFile, grader: str) -> str:
    """The command that finds the strengths of a file's vectors by this judge."""
    path, first, then = file.path, "", ""
    if path.startswith("embedded:"):  # what ships stays as it is
        path = "vectors.safetensors"
        first = f"{shlex.join(['cp', str(embedded_path(file.path)), path])} && "
        then = f" and pass -T vectors={path}"
    named = [one for one in subjects().values() if one.model == file.info.model and not one.adapter]
    model = named[0].name if named else file.info.model
    words = ["esr-eval", "vectors", "calibrate", path, "--model", model, "--grader", grader]
    return f"`{first}{shlex.join(words)}`{then}, or pass -T strength=NUMBER (0.4, say)"
