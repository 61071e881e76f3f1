"""Files of concept vectors: a tensor per concept, where it was taken from, and how strong it is.

A safetensors file whose tensors are float32 (d_model,), one per concept, named by it. Each has the
length of the mean residual at the layer it was taken from, so a strength of 1 adds as much as the
residual stream itself holds there, in every model. Where the vectors come from stands in the
file's metadata as JSON (`VectorInfo`), so the file is complete by itself. Strengths are searched as
latents' are; in units of the mean residual norm, one prior serves every model.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from inspect_ai.model import get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval._util.files import file_sha256, write_whole
from esr_eval.calibration.bisection import Round, calibration_prior
from esr_eval.calibration.search import StrengthSearch, with_answer
from esr_eval.calibration.strengths import parse_strength
from esr_eval.data.trial import UNCALIBRATED, Strength
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.solvers import VectorSource
from esr_eval.spec import AddVector, Runtime
from esr_eval.subjects import CalibrationPrior, Subject, check_layer, embedded_path, subjects

METADATA_KEY = "esr_eval"
"""Key of the safetensors metadata under which `VectorInfo` stands."""

VECTOR_STRENGTH = "vector_strength"
"""Key of the sample store."""

PRIOR = {"prior_mean": 0.4, "prior_std": 0.25, "lower": 0.0, "upper": 1.5}
"""In units of the mean residual norm. At 1.5 the vector outweighs the residual itself."""

HOW_TO_MAKE = (
    "make one with `esr-eval vectors extract --model esr/{subject} -o vectors.safetensors`"
)

Vector = NDArray[np.float32]


class Concept(BaseModel):
    """One vector: what it stands for, how well it does, and how strongly to add it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="Name of the tensor, and label of the trials.")
    texts: int = Field(
        ge=0, description="Texts about the concept that it was taken from; none of a random one."
    )
    separation: float = Field(
        description="Distance of a held-out text of the concept along the vector of the others, "
        "in standard deviations of the other concepts' texts; about 0 when it says nothing."
    )
    strength: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Calibrated: mean first-attempt score 30 of 100.",
    )
    achieved_score: float | None = Field(
        default=None, description="Mean first-attempt score of fresh responses at that strength."
    )


class VectorInfo(BaseModel):
    """What a file of vectors was taken from, and by what its strengths were found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str
    revision: str | None
    adapter: str | None
    dtype: str
    layer: int = Field(ge=0, description="Decoder layer whose output was read, and is edited.")
    d_model: int = Field(ge=1)
    mean_norm: float = Field(gt=0, description="Mean norm of the residuals read at that layer.")
    corpus: str = Field(description="Fingerprint of the concepts and their texts.")
    concepts: tuple[Concept, ...] = Field(min_length=1, description="In the order of the corpus.")
    calibration: dict[str, str | float | int] | None = Field(
        default=None, description="Judge, prior and effort of the strengths."
    )

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [concept.name for concept in self.concepts]
        if len(set(names)) < len(names):
            raise ValueError("a concept stands twice")
        return self


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors as it was read: its content is fixed by the digest.

    Attributes:
        path: As it is named in specs and logs: absolute, or `embedded:...` for a shipped one.
        sha256: Digest of the file.
        info: Its metadata.
    """

    path: str
    sha256: str
    info: VectorInfo

    def latents(self) -> list[Latent]:
        """The vectors in the form that trials are drawn from: index in the file, and concept."""
        return [
            Latent(index=index, label=concept.name)
            for index, concept in enumerate(self.info.concepts)
        ]

    def check_fits(self, runtime: Runtime, subject: Subject) -> None:
        """Compare the file with the model that it is to steer, before any weights load.

        Raises:
            EsrError: It was taken from another model, or does not fit this one.
        """
        info = self.info
        for name in ("model", "revision"):
            theirs, ours = getattr(info, name), getattr(runtime, name)
            if theirs != ours:
                raise EsrError(
                    f"The vectors in {self.path} were taken from {name} {theirs}, but {name} "
                    f"{ours} is to be steered; {HOW_TO_MAKE.format(subject=subject.name)}."
                )
        if subject.d_model is not None and info.d_model != subject.d_model:
            raise EsrError(
                f"The vectors in {self.path} have {info.d_model} values, but the residual stream "
                f"of {subject.name} has width {subject.d_model}."
            )
        if subject.n_layers is not None:
            check_layer(
                info.layer, subject.n_layers, subject.name, f"{self.path}: layer {info.layer}"
            )


def default_vectors(subject: Subject) -> str:
    """The vectors that are shipped for a subject.

    Raises:
        EsrError: There are none.
    """
    reference = f"embedded:{subject.name}/vectors.safetensors"
    if not embedded_path(reference).is_file():
        how = HOW_TO_MAKE.format(subject=subject.name)
        raise EsrError(
            f"{subject.name} comes without concept vectors: {how}, then -T vectors=FILE."
        )
    return reference


def read_vectors(path: str) -> VectorFile:
    """Read what a file of vectors says of itself, and check that its tensors are as it says.

    Args:
        path: The file, or `embedded:NAME/FILE` of this package.

    Raises:
        EsrError: There is no such file, or it is none of these.
    """
    file = embedded_path(path)
    if not file.is_file():
        raise EsrError(f"There is no vector file {path}.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            metadata = tensors.metadata() or {}
            shapes = {
                name: tuple(tensors.get_slice(name).get_shape())
                for name in tensors.keys()  # noqa: SIM118 - safe_open is no mapping
            }
    except (SafetensorError, OSError) as error:
        raise EsrError(f"{path} is no safetensors file ({error}).") from error
    try:
        info = VectorInfo.model_validate_json(metadata[METADATA_KEY])
    except KeyError:
        raise EsrError(
            f"{path} does not say where its vectors come from: make it with "
            "`esr-eval vectors extract`."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EsrError(f"The metadata of {path} is damaged ({where}: {first['msg']}).") from None
    for concept in info.concepts:
        if shapes.get(concept.name) != (info.d_model,):
            raise EsrError(
                f"{path} says that it holds '{concept.name}' with {info.d_model} values, "
                f"but has {shapes.get(concept.name, 'no such tensor')}."
            )
    # A retry may run in another folder than the one that the path was given in.
    named = path if path.startswith("embedded:") else str(file.resolve())
    return VectorFile(named, file_sha256(file), info)


def write_vectors(path: Path, info: VectorInfo, vectors: Mapping[str, Vector]) -> None:
    """Write a file of vectors, whole or not at all."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(v, dtype=np.float32) for name, v in vectors.items()}
    content = save(tensors, metadata={METADATA_KEY: info.model_dump_json()})
    write_whole(path, content)


def load_tensors(path: str) -> dict[str, Vector]:
    """All vectors of a file, by concept."""
    from safetensors.numpy import load_file

    return dict(load_file(embedded_path(path)))


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
