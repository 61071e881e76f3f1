"""The solver of the search for off-topic detectors: answers made once, pairs read, arrays kept."""

from dataclasses import dataclass, field

import anyio
import numpy as np
from anyio.lowlevel import RunVar
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from numpy.typing import NDArray

from esr_eval.detectors.pairing import Pairing
from esr_eval.logs import sidecar
from esr_eval.solvers import SEEDS_PER_EPOCH, provider_of, runtime_of, steering_config
from esr_eval.spec import Positions, Readout, Steering, fingerprint

Floats32 = NDArray[np.float32]

COUNTS = "pair"
"""Where a sample's store keeps what is counted of its two pairs."""
MISMATCHED_ANSWER = "mismatched_answer"
"""Where it keeps the other task's answer."""


@dataclass
class _Answer:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    output: ModelOutput | None = None


class Answers:
    """Answers that two samples need, made by whichever comes first.

    An answer depends on its task and seed alone, so who makes it does not matter. A sample waits
    only for an answer that another is making and that waits for no further answer: no two samples
    can wait for each other.
    """

    def __init__(self) -> None:
        """Start empty; a run (an event loop) of its own never sees another run's answers."""
        self._of_run: RunVar[dict[tuple[str, str, str, int], _Answer]] = RunVar("esr-answers")

    async def get(self, model: Model, text: str, seed: int) -> ModelOutput:
        """The unsteered answer to a task."""
        known = self._of_run.get(None)
        if known is None:
            known = {}
            self._of_run.set(known)
        key = (str(model), fingerprint(runtime_of(model)), text, seed)
        answer = known.setdefault(key, _Answer())
        async with answer.lock:
            if answer.output is None:
                answer.output = await model.generate(text, config=steering_config(model, seed=seed))
        return answer.output


@solver
def read_pairs(layer: int, positions: Positions) -> Solver:
    """Answer the sample's task unsteered, and read the SAE over its matched and mismatched pair.

    The matched pair is the task and its answer, the mismatched one the task and the answer to
    another task. Maxima and rates over positions go into a file beside the log.

    Args:
        layer: Decoder layer to read.
        positions: `all` (task and answer) or `generated` (the answer).
    """
    answers = Answers()
    readouts = tuple(
        Readout(latents="all", layer=layer, reduce=reduce, positions=positions)
        for reduce in ("max", "rate")
    )

    async def read(model: Model, task: str, answer: str) -> tuple[Floats32, Floats32, int]:
        messages: list[ChatMessage] = [
            ChatMessageUser(content=task),
            ChatMessageAssistant(content=answer),
        ]
        steering = Steering(runtime=runtime_of(model), readouts=readouts)
        reading = await provider_of(model).read(messages, steering)
        maxima, rates = reading.values
        return maxima, rates, reading.answer_tokens

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        pairing = state.metadata_as(Pairing)
        later = (state.epoch - 1) * SEEDS_PER_EPOCH
        task = state.input_text
        state.output = await answers.get(model, task, pairing.seed + later)
        state.messages.append(state.output.message)
        other = await answers.get(model, pairing.partner_text, pairing.partner_seed + later)
        own, mismatched = state.output.completion, other.completion
        if not own.strip() or not mismatched.strip():
            raise RuntimeError("The model's answer is empty: there is no pair to read.")
        matched_max, matched_rate, own_tokens = await read(model, task, own)
        mismatched_max, mismatched_rate, other_tokens = await read(model, task, mismatched)
        ref = sidecar.save(
            {
                "matched_max": matched_max,
                "mismatched_max": mismatched_max,
                "matched_rate": matched_rate.astype(np.float16),
                "mismatched_rate": mismatched_rate.astype(np.float16),
            },
            {
                "sample": str(state.sample_id),
                "epoch": str(state.epoch),
                "layer": str(layer),
                "positions": positions,
                "runtime": fingerprint(runtime_of(model)),
            },
        )
        state.store.set(sidecar.STORE_KEY, ref.model_dump())
        state.store.set(MISMATCHED_ANSWER, mismatched)
        state.store.set(
            COUNTS,
            {
                "active_matched": int((matched_max > 0).sum()),
                "active_mismatched": int((mismatched_max > 0).sum()),
                "only_matched": int(((matched_max > 0) & (mismatched_max <= 0)).sum()),
                "only_mismatched": int(((matched_max <= 0) & (mismatched_max > 0)).sum()),
                "matched_tokens": own_tokens,
                "mismatched_tokens": other_tokens,
            },
        )
        return state

    return solve
