"""Stand-ins for a language model and its judge: arithmetic, but real Inspect runs and files."""

import json
import math
import random
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)

from esr_eval.provider.api import DecoderRow, ESRModelAPI
from esr_eval.scorers import concreteness
from esr_eval.scorers.attempts import parse_request
from esr_eval.spec import Boost, Steering
from esr_eval.steering.requests import Reading

TRUE_STRENGTH = {1: 12.0, 2: 30.0}
"""Boost of each latent at which the judge's mean score is 30."""

LABELS = "index_in_sae,label\n1,oceans\n2,taxes\n"
RESTART = "Wait, that's not right. Here is the answer that was asked for."
N_LATENTS = 60
NORM = 40.0
"""The residual's norm; a decoder row is 2 long."""
MODEL = "esr/llama-8b"
SUBJECT = "llama-8b"


class Subject:
    """Answers with the boost that it got; when steered with an odd seed, it starts over."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []
        self.read: list[Any] = []
        self.fail_after: int | None = None

    def answer(self, config: GenerateConfig) -> ModelOutput:
        spec = Steering.from_extra_body(config.extra_body)
        assert spec is not None
        edit = spec.edits[0] if spec.edits else None
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the power went off")
        latent, boost = (edit.latent, edit.strength) if isinstance(edit, Boost) else (0, 0.0)
        self.calls.append((latent, boost))
        seed = config.seed or 0
        again = f" {RESTART}" if boost and seed % 2 else ""
        return _output("sim", f"latent {latent} boost {boost!r} seed {seed}{again}")


def install(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Put the stand-in behind the provider `esr`; no weights are needed or looked for."""
    subject = Subject()

    async def generate(
        self: Any, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        return subject.answer(config)

    async def read(self: Any, messages: Any, steering: Steering) -> Reading:
        [readout] = steering.readouts
        subject.read.append(readout.latents)
        if readout.latents == "norm":
            values = np.full((1, 5), NORM, np.float32)
        else:  # every seventh latent has to do with the tasks, all fire on the first token
            active = [[9.0, 0.0, float(latent % 7 == 0)] for latent in readout.latents]
            values = np.array(active, np.float32)
        return Reading([values], 3, 5, np.zeros((5, 2), np.int64), 0, 0)

    async def nothing(self: Any, *args: Any) -> None:
        return None

    async def ready(self: Any) -> Any:
        return SimpleNamespace(sae=SimpleNamespace(config=SimpleNamespace(n_latents=N_LATENTS)))

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    monkeypatch.setattr(ESRModelAPI, "read", read)
    monkeypatch.setattr(ESRModelAPI, "ready", ready)
    monkeypatch.setattr(ESRModelAPI, "sae_fit", nothing)
    monkeypatch.setattr(
        ESRModelAPI, "decoder_row", lambda self, latent: DecoderRow(2.0, 4096, normalised=False)
    )
    monkeypatch.setattr(ESRModelAPI, "check_latents", lambda self, latents: None)
    monkeypatch.setattr(ESRModelAPI, "preflight", lambda self, *args, **more: None)
    return subject


@modelapi(name="sim-judge")
class SimulatedJudge(ModelAPI):
    """`sim-judge/noisy` judges by the boost; `sim-judge/mute` never gives a verdict."""

    async def generate(
        self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        if self.model_name == "mute":
            return _output(self.model_name, "I cannot judge this.")
        with suppress(ValueError):
            return _ratings(concreteness.parse_request(input))
        return _verdict(parse_request(input).response)


def _ratings(labels: dict[int, str]) -> ModelOutput:
    rated = [{"id": i, "score": 10 if "quality" in text else 90} for i, text in labels.items()]
    return _output("noisy", json.dumps({"ratings": rated}))


def _verdict(response: str) -> ModelOutput:
    first, restart, _ = response.partition(f" {RESTART}")
    _, latent, _, boost, _, seed = first.split()
    ratio = float(boost) / TRUE_STRENGTH.get(int(latent), 1.0)
    mean = 95 / (1 + math.exp(6 * (ratio - 1) + math.log(95 / 30 - 1)))
    score = min(100, max(0, round(mean + random.Random(response).gauss(0, 10))))
    attempts = [{"first": f"latent {latent}", "last": f"seed {seed}", "score": score}]
    if restart:
        attempts.append({"first": "Wait, that's not right.", "last": "asked for.", "score": 90})
    return _output("noisy", json.dumps({"attempts": attempts}))


def _output(model: str, text: str) -> ModelOutput:
    output = ModelOutput.from_content(model, text)
    # Without usage Inspect would count tokens with a tokenizer from the network.
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return output
