"""What all candidates of a selection share: one pass over the task prompts, one round of ratings.

Both cover every candidate at once and are made when the first sample asks: a forward pass tells of
the whole SAE, and labels are cheaper to rate in batches. Ratings stay in Inspect's cache, so that
an interrupted selection pays for nothing twice.
"""

from collections.abc import Sequence

import anyio
import numpy as np
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import display_counter
from numpy.typing import NDArray

from esr_eval.dataset import Prompt
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers.concreteness import Rating, rate_concreteness
from esr_eval.scorers.grader import grader_model
from esr_eval.selection.rules import Activity, Finding, activities
from esr_eval.solvers import provider_of
from esr_eval.spec import Readout, Steering

FINDING = "selection_finding"
"""Key of the sample store."""


@solver
def survey_candidates(latents: list[int], labels: list[str], asked: list[dict[str, str]]) -> Solver:
    """Keep with every sample what its latent does on the tasks, and how concrete its label is.

    Args:
        latents: All candidates of the run.
        labels: Their labels, in the same order.
        asked: The tasks, as plain `dataset.Prompt`s.
    """
    tasks = [Prompt.model_validate(prompt) for prompt in asked]
    lock = anyio.Lock()
    activity: dict[int, Activity] = {}
    ratings: dict[str, Rating] = {}

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        async with lock:
            if not activity:
                maxima = await read_maxima(provider_of(model), tasks)
                activity.update(activities(maxima, [prompt.topic for prompt in tasks], latents))
            if not ratings:
                ratings.update(await _rate(grader_model(str(model)), labels))
        rating = ratings[state.metadata["label"]]
        finding = Finding(
            activity=activity[state.metadata["latent"]],
            concreteness=rating.score,
            unrated_because=rating.reason,
        )
        state.store.set(FINDING, finding.model_dump(mode="json"))
        state.output = ModelOutput.from_content(str(model), _said(finding))
        state.messages.append(state.output.message)
        return state

    return solve


async def read_maxima(provider: ESRModelAPI, asked: Sequence[Prompt]) -> NDArray[np.float32]:
    """Largest activation of every latent over each prompt's tokens, (prompts, latents).

    The prompt stands in the model's chat template, ready to be answered; the first `skip_first`
    positions of the runtime are left out.

    Raises:
        EsrError: The runtime does not say which layer the SAE was trained on.
    """
    layer = provider.runtime.feature_layer
    if layer is None:
        raise EsrError("Say which layer the SAE was trained on, to read there: -M feature_layer=.")
    spec = Steering(
        runtime=provider.runtime,
        readouts=(Readout(latents="all", layer=layer, reduce="max", positions="prompt"),),
    )
    found: dict[int, NDArray[np.float32]] = {}

    async def read(place: int, text: str) -> None:
        chat: list[ChatMessage] = [ChatMessageUser(content=text), ChatMessageAssistant(content="")]
        found[place] = (await provider.read(chat, spec)).values[0]
        display_counter("Prompts", f"{len(found)}/{len(asked)}")

    async with anyio.create_task_group() as group:
        for place, prompt in enumerate(asked):
            group.start_soon(read, place, prompt.text)
    return np.stack([found[place] for place in range(len(asked))])


async def _rate(grader: Model, labels: Sequence[str]) -> dict[str, Rating]:
    return {rating.label: rating for rating in await rate_concreteness(grader, labels)}


def _said(finding: Finding) -> str:
    activity = finding.activity
    on = f" on '{activity.prompt}', rank {activity.best_rank}" if activity.prompt else ""
    rated = (
        f"unrated ({finding.unrated_because})"
        if finding.concreteness is None
        else f"{finding.concreteness:.0f}"
    )
    return f"Concreteness: {rated}. Largest activation: {activity.max_activation:.4g}{on}."
