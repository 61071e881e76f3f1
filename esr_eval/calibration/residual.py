"""How long the residual stream is where latents are boosted, and whether the SAE describes it.

Measured once for each model and kept, on answers of the model's own to some of the tasks: prompts
hold the template's tokens, whose residuals are unlike an answer's.
"""

import time
from collections.abc import Sequence

import anyio
import anyio.to_thread
import numpy as np
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, Model
from inspect_ai.util import collect
from pydantic import BaseModel, ConfigDict, Field

from esr_eval._util.files import keep, kept
from esr_eval._util.paths import cache_root
from esr_eval.calibration.store import runtime_key
from esr_eval.dataset import Latent, prompts
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.solvers import provider_of, steering_config, subject_of
from esr_eval.spec import Readout, Steering
from esr_eval.subjects import CalibrationPrior

ANSWERS, ANSWER_TOKENS = 16, 64
"""Answers measured on, and how long they are: some 1,000 tokens."""
LEAST_EXPLAINED = 0.5
"""Explained variance below which an SAE hardly describes what is steered or read."""


class LayerFit(BaseModel):
    """What an SAE makes of the residual stream at one layer."""

    model_config = ConfigDict(frozen=True)

    layer: int
    explained_variance: float = Field(description="Of the answers' residuals, 1 at best.")
    l0: float = Field(description="Active latents per token.")


class Residual(BaseModel):
    """The residual stream of a model's own answers.

    The SAE's fit is measured where its weights and the model's are on this machine.
    """

    model_config = ConfigDict(frozen=True)

    layer: int = Field(description="The steering layer.")
    norm: float = Field(
        gt=0, allow_inf_nan=False, description="Median L2 norm over the answers' tokens."
    )
    tokens: int = Field(description="How many tokens these are.")
    tokens_per_second: float | None = Field(
        default=None, description="At which the answers were generated, all at once."
    )
    fits: tuple[LayerFit, ...] = Field(default=(), description="At the steering and SAE's layer.")

    def warnings(self) -> list[str]:
        """Where the SAE does not describe what is steered or read."""
        return [
            f"the SAE explains {fit.explained_variance:.0%} of the variance of the model's own "
            f"answers at layer {fit.layer}, with {fit.l0:.0f} latents active per token: boosts and "
            "clamps there may not mean what their labels say"
            for fit in self.fits
            if fit.explained_variance < LEAST_EXPLAINED
        ]


_measuring = anyio.Lock()


async def measured_residual(model: Model, layer: int | None = None) -> Residual:
    """The residual of the model under test, from the cache where it was measured before.

    Args:
        model: The model under test.
        layer: Where it is measured; None is the steering layer.

    Raises:
        EsrError: The model has no steering layer, answers nothing, or its residual is no number.
    """
    provider = provider_of(model)
    runtime = provider.runtime
    if layer is not None:
        runtime = runtime.model_copy(update={"steering_layer": layer})
    path = cache_root() / "residuals" / f"{runtime_key(runtime)}.json"
    async with _measuring:
        found = kept(path, Residual.model_validate_json)
        if found is None:
            found = await _measure(model, provider, runtime.steering_layer)
            keep(path, found.model_dump(mode="json"))
        return found


async def _measure(model: Model, provider: ESRModelAPI, layer: int | None) -> Residual:
    if layer is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    every = prompts()
    asked = [every[at * len(every) // ANSWERS].text for at in range(ANSWERS)]
    temperature = subject_of(model).temperature

    async def answer(number: int) -> str:
        config = steering_config(
            model, seed=number, max_tokens=ANSWER_TOKENS, temperature=temperature
        )
        message = (await model.generate(asked[number], config=config)).message
        # A model that thinks first may not have come to its answer: what it thinks serves as well.
        content = [] if isinstance(message.content, str) else message.content
        thoughts = [part.reasoning for part in content if part.type == "reasoning"]
        return message.text or "\n".join(thoughts)

    await provider.ready()  # loading is no part of the speed
    started = time.monotonic()
    answers = await collect(*(answer(number) for number in range(ANSWERS)))
    seconds = time.monotonic() - started
    spec = Steering(
        runtime=provider.runtime,
        readouts=(Readout(latents="norm", layer=layer, reduce="tokens", positions="generated"),),
    )
    chats: list[list[ChatMessage]] = [
        [ChatMessageUser(content=question), ChatMessageAssistant(content=text)]
        for question, text in zip(asked, answers, strict=True)
        if text.strip()
    ]
    if not chats:
        raise EsrError(f"{provider.subject.name} answers nothing, so its residual has no norm.")
    readings = await collect(*(provider.read(chat, spec) for chat in chats))
    norms = np.concatenate([reading.values[0].ravel() for reading in readings])
    if not np.isfinite(norms).all():
        raise EsrError(
            f"The residual of {provider.subject.name} at layer {layer} is no number in "
            f"{provider.runtime.dtype}: pass -M dtype=bfloat16 or float32."
        )
    tokens = int(sum(reading.answer_tokens for reading in readings))
    return Residual(
        layer=layer,
        norm=float(np.median(norms)),
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        fits=await _fits(provider, chats, layer),
    )


async def _fits(
    provider: ESRModelAPI, chats: Sequence[Sequence[ChatMessage]], steered: int
) -> tuple[LayerFit, ...]:
    """The SAE's fit at the steered and at its own layer, where its weights are at hand."""
    layers = dict.fromkeys((steered, provider.runtime.feature_layer))
    found = [await provider.sae_fit(chats, layer) for layer in layers if layer is not None]
    return tuple(
        LayerFit(layer=fit.layer, explained_variance=fit.explained_variance, l0=fit.l0)
        for fit in found
        if fit is not None
    )


async def strength_unit(
    model: Model, latent: Latent, prior: CalibrationPrior | None, layer: int | None = None
) -> float:
    """Strength that is one unit of a prior: 1, or what adds the residual's median norm.

    Args:
        model: The model under test.
        latent: Whose decoder row.
        prior: Names the unit; None is the residual's norm.
        layer: Where the norm is measured; None is the steering layer.
    """
    if prior is not None and prior.unit == "latent":
        return 1.0
    residual = await measured_residual(model, layer)
    row = await anyio.to_thread.run_sync(provider_of(model).decoder_row, latent.index)
    return residual.norm / row.added(residual.norm)
