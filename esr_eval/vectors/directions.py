"""Directions from contrasts, and random ones as long: taken in the run, and added in it.

Each direction is the difference of means over answers that differ in one thing, to the same
questions (arXiv 2312.06681; refusal as such a difference: arXiv 2406.11717).
"""

from collections.abc import Mapping
from typing import NamedTuple

import anyio
import numpy as np
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, Model, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from esr_eval._util.paths import cache_root
from esr_eval.calibration.store import runtime_key
from esr_eval.data.pushes import Direction, Push, directions
from esr_eval.data.thoughts import SPANS, SpanName
from esr_eval.errors import EsrError
from esr_eval.solvers import (
    SEEDS_PER_EPOCH,
    VectorSource,
    answered,
    boost_of,
    provider_of,
    runtime_of,
    steering_config,
)
from esr_eval.spec import fingerprint
from esr_eval.vectors.extract import contrasts, scaled
from esr_eval.vectors.file import (
    Concept,
    Vector,
    VectorFile,
    VectorInfo,
    read_vectors,
    write_vectors,
)


class Wanted(NamedTuple):
    """Which directions a run adds.

    Attributes:
        contrasts: File of contrasts; None takes those that ship.
        layer: Whose output is read and edited.
        random: Random directions beside them.
        seed: Of these.
    """

    contrasts: str | None
    layer: int
    random: int
    seed: int


_taking = anyio.Lock()


async def taken(model: Model, wanted: Wanted) -> VectorFile:
    """The directions of the model under test, from the cache where they were taken before.

    Raises:
        EsrError: A contrast leads nowhere, or the cache cannot be written.
    """
    provider, found = provider_of(model), directions(wanted.contrasts)
    # SAEs have no part in it.
    runtime = provider.runtime.model_copy(update={"sae": None, "steering_layer": wanted.layer})
    corpus = fingerprint({name: one.model_dump(mode="json") for name, one in found.items()})
    decides = {"corpus": corpus, "random": wanted.random, "seed": wanted.seed}
    path = cache_root() / "directions" / f"{runtime_key(runtime, **decides)}.safetensors"
    async with _taking:
        if not path.is_file():
            info, vectors = await _take(model, found, wanted, corpus)
            try:
                write_vectors(path, info, vectors)
            except OSError as error:
                raise EsrError(
                    f"The directions cannot be kept in {path.parent} ({error.strerror}): name "
                    "another folder with ESR_EVAL_CACHE."
                ) from error
    return read_vectors(str(path))


async def _take(
    model: Model, found: Mapping[str, Direction], wanted: Wanted, corpus: str
) -> tuple[VectorInfo, dict[str, Vector]]:
    provider = provider_of(model)
    chats: list[list[ChatMessage]] = []
    names: list[tuple[str, str]] = []
    for name, direction in found.items():
        for pair in direction.pairs:
            for side, answer in (("protective", pair.protective), ("harmful", pair.harmful)):
                question = ChatMessageUser(content=pair.question)
                chats.append([question, ChatMessageAssistant(content=answer)])
                names.append((name, side))
    means, norms = await provider.mean_residuals(chats, wanted.layer)
    norm = float(norms.mean())
    concepts, vectors = [], {}
    for name in found:
        own = [at for at, (whose, _) in enumerate(names) if whose == name]
        contrast = contrasts(means[own], [names[at][1] for at in own])["protective"]
        vectors[name] = scaled(contrast.difference, norm)
        separation = round(contrast.separation, 3)
        concepts.append(Concept(name=name, texts=len(own), separation=separation))
    draw = np.random.default_rng(wanted.seed)
    for number in range(1, wanted.random + 1):
        vectors[f"random {number}"] = scaled(
            draw.standard_normal((means.shape[1],), dtype=np.float32), norm
        )
        concepts.append(Concept(name=f"random {number}", texts=0, separation=0.0))
    runtime = provider.runtime
    info = VectorInfo(
        model=runtime.model,
        revision=runtime.revision,
        adapter=runtime.adapter,
        dtype=runtime.dtype,
        layer=wanted.layer,
        d_model=means.shape[1],
        mean_norm=norm,
        corpus=corpus,
        concepts=tuple(concepts),
    )
    return info, vectors


@solver
def push(
    contrasts: str | None,
    layer: int,
    random: int,
    seed: int,
    span: SpanName = "both",
) -> Solver:
    """Answer a prompt under its push, or without one.

    Args:
        contrasts: See `Wanted`.
        layer: Likewise.
        random: Likewise.
        seed: Likewise.
        span: Which positions are touched.
    """
    wanted = Wanted(contrasts, layer, random, seed)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model, trial = get_model(), state.metadata_as(Push)
        file = await taken(model, wanted)
        known = {concept.name: concept for concept in file.info.concepts}
        if trial.way in ("protect", "harm") and trial.vector in known:
            state.metadata.update(separation=known[trial.vector].separation)
        source = VectorSource(file.path, file.sha256, layer)
        update = SPANS[span].model_dump()
        edits = boost_of(trial, runtime_of(model), source)
        config = steering_config(
            model,
            edits=[edit.model_copy(update=update) for edit in edits],
            seed=trial.seed + (state.epoch - 1) * SEEDS_PER_EPOCH,
        )
        return await answered(state, model, config)

    return solve
