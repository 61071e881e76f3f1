"""The solver that reads activations over a stored answer, token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from esr_eval.data.trial import Trial
from esr_eval.logs import sidecar
from esr_eval.solvers import boost_of, provider_of, runtime_of
from esr_eval.spec import Readout, Steering, fingerprint

MEANS = "activation_means"
"""Where a sample's store keeps the mean over the answer of each set of latents."""
OFFSETS = "offsets"
"""Name of the array of the tokens' characters."""
BOOSTED = "boosted"
"""Name of the array of the boosted latent; other sets go by their own names."""


@solver
def read_answer(sets: dict[str, list[int]], layer: int) -> Solver:
    """Read latents over the sample's last message, with its trial's boost on.

    One forward pass over prompt and answer; nothing is generated. Activations go into a file
    beside the log, one float32 array (latents, tokens) for each set, and `offsets`, (tokens, 2):
    the characters of every token of the answer.

    Args:
        sets: Latents to read, by name of the set; the boosted latent is read beside them.
        layer: Decoder layer whose output is read, after its edits.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        trial = state.metadata_as(Trial)
        answer = state.messages[-1].text
        named: Mapping[str, Sequence[int]] = {**sets, BOOSTED: [trial.latent]}
        spec = Steering(
            runtime=runtime_of(model),
            edits=boost_of(trial, runtime_of(model)),
            readouts=tuple(
                Readout(latents=tuple(latents), layer=layer, reduce="tokens", positions="generated")
                for latents in named.values()
            ),
        )
        reading = await provider_of(model).read(state.messages, spec)
        arrays: dict[str, np.ndarray[Any, Any]] = dict(zip(named, reading.values, strict=True))
        for name, values in arrays.items():
            due = (len(named[name]), reading.answer_tokens)
            if values.shape != due:
                raise RuntimeError(f"{name} were read at {values.shape} places instead of {due}.")
        arrays[OFFSETS] = reading.offsets
        about = {
            "sample": str(state.sample_id),
            "fingerprint": fingerprint(spec),
            "layer": str(layer),
        }
        state.store.set(sidecar.STORE_KEY, sidecar.save(arrays, about).model_dump(mode="json"))
        means = {name: float(values.mean()) for name, values in arrays.items() if name != OFFSETS}
        state.store.set(MEANS, {**means, "tokens": reading.answer_tokens})
        state.output = ModelOutput.from_content(str(model), answer)
        # No request to a model says what was done here, so the sample's output does.
        state.output.metadata = {
            "steering": spec.model_dump(mode="json", exclude_none=True),
            "fingerprint": about["fingerprint"],
            "edited_positions": reading.edited_positions,
        }
        return state

    return solve
