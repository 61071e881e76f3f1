"""Strengths of concept vectors: searched as latents' are, and looked up in their file.

They are in units of the mean residual norm, so one prior serves every model.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from pydantic import BaseModel, ConfigDict

from esr_eval.calibration.bisection import Round, calibration_prior
from esr_eval.calibration.search import StrengthSearch, with_answer
from esr_eval.calibration.strengths import UNCALIBRATED, parse_strength
from esr_eval.data.trial import Strength
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.solvers import VectorSource
from esr_eval.spec import AddVector
from esr_eval.subjects import CalibrationPrior, Subject, embedded_path, subjects
from esr_eval.vectors.file import VectorFile

VECTOR_STRENGTH = "vector_strength"
"""Key of the sample store."""

PRIOR = {"prior_mean": 0.4, "prior_std": 0.25, "lower": 0.0, "upper": 1.5}
"""In units of the mean residual norm. At 1.5 the vector outweighs the residual itself."""


class VectorStrength(BaseModel):
    """Where a search ended, and its rounds."""

    model_config = ConfigDict(frozen=True)

    strength: float
    achieved_score: float | None
    rounds: tuple[Round, ...]
    check: Round | None
    key: str | None = None  # of its checkpoint


def vector_prior(subject: Subject, changes: Mapping[str, Any] | None = None) -> CalibrationPrior:
    """The prior over strengths, with the effort that the subject's latents are calibrated with.

    Args:
        subject: Whose effort.
        changes: Fields of the prior that are to be others.

    Raises:
        EsrError: A changed field has no valid value.
    """
    return calibration_prior(subject, {**PRIOR, **(changes or {})})


@solver
def bisect_vector(
    vectors: tuple[str, str, int],
    prior: CalibrationPrior,
    temperature: float,
    check_samples: int,
    seed: int,
    fresh: bool = False,
) -> Solver:
    """Search the strength of the sample's vector.

    Its checkpoint stays when the search has ended: the strengths of a file are written together,
    and until then an interrupted calibration goes on from it.

    Args:
        vectors: `VectorSource`: file, digest, layer.
        prior: Prior and effort.
        temperature: Of the responses.
        check_samples: Fresh responses at the final strength; no part of the search.
        seed: Seed of tasks and samplers.
        fresh: Search from the start even where a search was interrupted.
    """
    source = VectorSource(*vectors)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        vector = Latent(index=state.metadata["vector_index"], label=state.metadata["concept"])

        def added(strength: float) -> AddVector:
            return AddVector(
                path=source.path,
                tensor=vector.label,
                sha256=source.sha256,
                strength=strength,
                layer=source.layer,
            )

        search = StrengthSearch.of(
            model, vector, added, prior, temperature, check_samples, seed, source.sha256
        )
        record = await search.run(resume=not fresh)
        found = VectorStrength.model_validate(record.model_dump()) if record else None
        state.store.set(VECTOR_STRENGTH, found.model_dump(mode="json") if found else None)
        return with_answer(state, record)

    return solve


def vector_strengths(
    strength: str | float, file: VectorFile, chosen: Sequence[Latent], grader: str
) -> dict[int, Strength]:
    """The strength of every vector by its index, in units of the mean residual norm.

    Args:
        strength: As in the task.
        file: Holds the calibrated strengths.
        chosen: Which vectors.
        grader: The judge of this run; strengths found by another judge's scores are not its.

    Raises:
        EsrError: The strength is none of these, or was not calibrated by this judge.
    """
    rule = parse_strength(strength)
    # A vector is as long as the mean residual: a number already is a share of it.
    if rule.kind in ("number", "rms"):
        return {vector.index: Strength(rule.value, "given") for vector in chosen}
    if rule.kind == "prior":
        return {vector.index: Strength(PRIOR["prior_mean"], UNCALIBRATED) for vector in chosen}
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
    return {
        index: Strength(rule.value * value, "calibrated")
        for index, value in found.items()
        if value is not None
    }


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
