"""From a sample's trial to a steered request: the one place that writes extra_body."""

from collections.abc import Sequence
from typing import NamedTuple

from inspect_ai.log import transcript
from inspect_ai.model import ContentText, GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.spec import AddVector, Boost, Clamp, Edit, Readout, Runtime, Steering
from esr_eval.subjects import Subject
from esr_eval.text import one_line

SEEDS_PER_EPOCH = 1_000_003
"""Epochs of one trial differ in their seed by this much: a prime above the paper's seed range."""


def provider_of(model: Model) -> ESRModelAPI:
    """The provider behind a model.

    Raises:
        EsrError: The model under test is not run by this project's provider.
    """
    if not isinstance(model.api, ESRModelAPI):
        raise EsrError(
            f"{model} cannot be steered: run the task with --model esr/NAME "
            "(`esr-eval subjects` lists the names)."
        )
    return model.api


def model_under_test(**own: str) -> tuple[Model, ESRModelAPI]:
    """The model of this run, and its provider.

    Args:
        own: Generation settings that the task decides itself, and its argument in their place.

    Raises:
        EsrError: It cannot be steered, or is given settings that the task would not keep to.
    """
    model = get_model()
    provider = provider_of(model)
    every = {"seed": "every trial has a seed of its own, drawn by -T seed="}
    for name, instead in {**every, **own}.items():
        value = getattr(model.config, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise EsrError(f"{option} {value} would change nothing here: {instead}.")
    return model, provider


def subject_of(model: Model) -> Subject:
    """The subject a model runs."""
    return provider_of(model).subject


def runtime_of(model: Model) -> Runtime:
    """What decides a model's tokens beside the request."""
    return provider_of(model).runtime


def steering_config(
    model: Model,
    *,
    edits: Sequence[Edit] = (),
    readouts: Sequence[Readout] = (),
    seed: int,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> GenerateConfig:
    """Generation settings that steer one request, complete enough to reproduce it.

    The spec is there even without edits: a baseline's log then names its runtime, too.

    Args:
        model: The model that will be asked.
        edits: What to edit.
        readouts: What to read.
        seed: Seed of the sampler.
        max_tokens: Longest response; None leaves it to the task and the command line.
        temperature: Sampling temperature; None leaves it to the task and the command line.
    """
    spec = Steering(runtime=runtime_of(model), edits=tuple(edits), readouts=tuple(readouts))
    return GenerateConfig(
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        extra_body=spec.to_extra_body(),
    )


class VectorSource(NamedTuple):
    """Where the plain vectors of a run come from, and where they act."""

    path: str
    sha256: str
    layer: int


def boost_of(
    trial: Trial,
    runtime: Runtime,
    vectors: VectorSource | None = None,
    until_token: int | None = None,
) -> tuple[Boost | AddVector, ...]:
    """The trial's boost at the runtime's steering layer; nothing when it is unsteered.

    Args:
        trial: Which latent, or vector, and how strongly.
        runtime: Where it acts.
        vectors: Where the trial's vector comes from.
        until_token: Generated token from which on the boost is off; None leaves it on.

    Raises:
        EsrError: The model has no steering layer, or the trial's vector comes from nowhere.
    """
    if trial.condition == "unsteered":
        return ()
    if trial.vector is not None:
        if vectors is None:
            raise EsrError(f"The trial adds the vector '{trial.vector}', but no file holds it.")
        return (
            AddVector(
                path=vectors.path,
                tensor=trial.vector,
                sha256=vectors.sha256,
                strength=trial.strength,
                layer=vectors.layer,
                until_token=until_token,
            ),
        )
    if runtime.steering_layer is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    return (
        Boost(
            latent=trial.latent,
            strength=trial.strength,
            layer=runtime.steering_layer,
            until_token=until_token,
        ),
    )


async def answered(state: TaskState, model: Model, config: GenerateConfig) -> TaskState:
    """Have the model answer; where the answer was given its beginning, both are the response.

    Args:
        state: The sample.
        model: Who answers.
        config: Settings of the request.
    """
    state.output = await model.generate(state.messages, config=config)
    if state.messages[-1].role == "assistant":
        whole = state.messages.pop().text + state.output.completion
        said = state.output.message.content
        thoughts = [] if isinstance(said, str) else [p for p in said if p.type == "reasoning"]
        state.output.message.content = [*thoughts, ContentText(text=whole)] if thoughts else whole
        state.output.completion = whole
    state.messages.append(state.output.message)
    return state


def receipt_of(trial: Trial, output: ModelOutput) -> dict[str, str]:
    """What was done to a sample's model, in words: the first thing that the viewer shows of it.

    Args:
        trial: Which latent, or vector, and how strongly.
        output: What the model answered, with the receipt of its edits.
    """
    found = output.metadata or {}
    tokens = output.usage.output_tokens if output.usage else 0
    told = {
        "vector" if trial.vector is not None else "latent": one_line(
            trial.vector if trial.vector is not None else str(trial.latent)
        ),
        "label": one_line(trial.label),
        "strength": f"{trial.strength:.4g}" if trial.condition == "steered" else "not boosted",
    }
    edited, held = found.get("edited_positions"), found.get("held_positions")
    if isinstance(edited, int):
        also = f", {held:,} held as they were" if isinstance(held, int) and held else ""
        told["receipt"] = f"{edited:,} positions changed{also}, {tokens:,} tokens generated"
    return told


@solver
def steered_generate(
    ablated: Sequence[int] = (),
    ablation_layer: int | None = None,
    vectors: tuple[str, str, int] | None = None,
    until_token: int | None = None,
) -> Solver:
    """Answer the sample's task with its trial's boost on.

    Where the sample's last message is the beginning of an answer, the model goes on from it, and
    the response is both together.

    Args:
        ablated: Latents held at 0 at every position, from the residual before the boost.
        ablation_layer: Where they are held.
        vectors: `VectorSource` of trials that add a plain vector.
        until_token: Generated token from which on the boost is off.
    """
    if ablated and ablation_layer is None:
        raise EsrError("Latents are ablated at a layer: pass ablation_layer.")
    source = None if vectors is None else VectorSource(*vectors)
    clamps = [Clamp(latent=latent, layer=ablation_layer or 0) for latent in ablated]

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        trial = state.metadata_as(Trial)
        config = steering_config(
            model,
            edits=(*clamps, *boost_of(trial, runtime_of(model), source, until_token)),
            seed=trial.seed + (state.epoch - 1) * SEEDS_PER_EPOCH,
        )
        state = await answered(state, model, config)
        transcript().info({**receipt_of(trial, state.output)}, source="steering")
        return state

    return solve
