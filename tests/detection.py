"""A stand-in subject with planted off-topic detectors: arithmetic, but real Inspect runs, files."""

from typing import Any

import numpy as np
import pytest
from inspect_ai.model import GenerateConfig, ModelOutput
from simulation import RESTART, _output

from esr_eval.provider.api import ESRModelAPI
from esr_eval.spec import Boost, Clamp, Steering, fingerprint
from esr_eval.steering.requests import Reading

MODEL = "esr/llama-8b"
N_LATENTS = 65_536
DETECTORS = (11, 222, 3333, 44_444)
"""Active if and only if an answer is not the task's own."""
DEAD = range(60_000, 60_100)
RATES = np.exp(np.random.default_rng(0).uniform(np.log(0.004), np.log(0.6), N_LATENTS))
"""How often each other latent fires, whatever it reads."""


class PlantedSubject:
    """Restarts on odd seeds when boosted, unless a detector is clamped; reads planted values."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.clamped: list[frozenset[int]] = []
        self.planted: tuple[int, ...] = DETECTORS
        self.fail_after: int | None = None
        self.read_as: list[Steering] = []

    def generate(self, messages: Any, config: GenerateConfig) -> ModelOutput:
        spec = Steering.from_extra_body(config.extra_body)
        assert spec is not None
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise RuntimeError("the power went off")
        seed = config.seed or 0
        self.asked.append((messages[-1].text, seed))
        clamps = frozenset(edit.latent for edit in spec.edits if isinstance(edit, Clamp))
        boosts = [edit for edit in spec.edits if isinstance(edit, Boost)]
        if not boosts and not clamps:
            return _output("sim", f"This answers with seed {seed}: {messages[-1].text}")
        self.clamped.append(clamps)
        [boost] = boosts
        restarts = seed % 2 and not clamps & set(DETECTORS)
        again = f" {RESTART}" if restarts else ""
        return _output("sim", f"latent {boost.latent} boost {boost.strength!r} seed {seed}{again}")

    def read(self, messages: Any, steering: Steering) -> Reading:
        self.read_as.append(steering)
        task, answer = messages[0].text, messages[-1].text
        random = np.random.default_rng(int(fingerprint({"task": task, "answer": answer}), 16))
        active = random.random(N_LATENTS) < np.minimum(1, 8 * RATES)
        active[list(DEAD)] = False
        active[list(self.planted)] = task not in answer
        values: dict[str, np.ndarray] = {
            "max": (active * (1 + random.random(N_LATENTS))).astype(np.float32),
            "rate": (active * np.maximum(RATES, 1 / 250)).astype(np.float32),
        }
        return Reading(
            values=[values[readout.reduce] for readout in steering.readouts],
            prompt_tokens=10,
            answer_tokens=20,
            offsets=np.zeros((20, 2), dtype=np.int64),
            edited_positions=0,
            expected_positions=0,
        )


def install(monkeypatch: pytest.MonkeyPatch) -> PlantedSubject:
    """Put the stand-in behind the provider `esr`; no weights are needed or looked for."""
    subject = PlantedSubject()

    async def generate(
        self: Any, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        return subject.generate(input, config)

    async def read(self: Any, messages: Any, steering: Steering) -> Reading:
        return subject.read(messages, steering)

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    monkeypatch.setattr(ESRModelAPI, "read", read)
    monkeypatch.setattr(ESRModelAPI, "preflight", lambda self, *args, **more: None)
    return subject
