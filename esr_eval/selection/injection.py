"""From a probe to its answer: concept and dose where they are found in the run, and the span."""

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from esr_eval.calibration.strengths import Strengths, parse_strength
from esr_eval.data.thoughts import SPANS, Probe
from esr_eval.dataset import Latent
from esr_eval.selection.prepare import PASSED_OVER, LatentChoice
from esr_eval.solvers import (
    SEEDS_PER_EPOCH,
    VectorSource,
    answered,
    boost_of,
    runtime_of,
    steering_config,
)
from esr_eval.spec import AddVector, Boost

UNRELATED_TOKENS = 24
"""Longest answer to an unrelated question: yes or no, and a little room to say it."""


def injections_of(
    probe: Probe, boosts: Sequence[Boost | AddVector]
) -> tuple[Boost | AddVector, ...]:
    """A probe's boosts at its layer, on the positions of its span."""
    span = SPANS[probe.span or "both"].model_dump()
    layer = {} if probe.layer is None else {"layer": probe.layer}
    return tuple(boost.model_copy(update={**span, **layer}) for boost in boosts)


@solver
def inject(
    seed: int,
    steering_layer: int | None,
    labels: str | None = None,
    wanted: int | None = None,
    vectors: tuple[str, str, int] | None = None,
    prior: dict[str, Any] | None = None,
    unrelated_tokens: int = UNRELATED_TOKENS,
) -> Solver:
    """Answer a probe's question under its injection, or without one.

    Where latents are chosen or doses are found in the run, what was found stands in the sample's
    metadata as if it had been known from the beginning.

    Args:
        seed: Of the choice of latents, and of searches for strengths.
        steering_layer: Where strengths are calibrated.
        labels: File of labels to choose latents from; None takes the subject's own.
        wanted: How many latents to choose; None where they are known.
        vectors: `VectorSource` of probes that add a plain vector.
        prior: Changes to the prior of searches.
        unrelated_tokens: Longest answer to an unrelated question.
    """
    source = None if vectors is None else VectorSource(*vectors)
    choice = None if wanted is None else LatentChoice(labels, wanted, None, seed)
    doses: dict[tuple[str, int], Strengths] = {}
    known: set[tuple[str, int, int]] = set()

    def strengths(dose: str, layer: int) -> Strengths:
        # The one where strengths are kept needs no name: it shares what other runs measured there.
        at = None if layer == steering_layer else layer
        made = doses.get((dose, layer)) or Strengths(parse_strength(dose), prior, seed, at)
        return doses.setdefault((dose, layer), made)

    async def found(state: TaskState) -> Probe:
        probe = state.metadata_as(Probe)
        if not probe.pending:
            return probe
        model = get_model()
        latent = Latent(index=probe.latent, label=probe.label)
        if choice is not None:
            latent, passed = await choice.latent(model, probe.latent)
            # Changed in place: scores are clustered by what this very dictionary says.
            state.metadata.update(latent=latent.index, label=latent.label)
            state.store.set(PASSED_OVER, [one._asdict() for one in passed])
        if probe.condition == "steered":
            assert probe.dose is not None and probe.layer is not None
            own, asked = (
                strengths(probe.dose, probe.layer),
                (probe.dose, probe.layer, latent.index),
            )
            if asked not in known:
                known.add(asked)
                own.know(model, [latent])
            strength = await own.of(model, latent)
            state.metadata.update(strength=strength.value, strength_found=strength.how)
        state.metadata.pop("pending", None)
        return state.metadata_as(Probe)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model, probe = get_model(), await found(state)
        config = steering_config(
            model,
            edits=injections_of(probe, boost_of(probe, runtime_of(model), source)),
            seed=probe.seed + (state.epoch - 1) * SEEDS_PER_EPOCH,
            max_tokens=None if probe.kind == "thought" else unrelated_tokens,
        )
        return await answered(state, model, config)

    return solve
