"""Stored answers chosen to be read, and the solver that reads every token's activations."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from inspect_ai.log import EvalLog, read_eval_log, read_eval_log_sample_summaries
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from esr_eval.data.trial import Condition, Trial
from esr_eval.episodes.traces import OFFSETS
from esr_eval.errors import EsrError
from esr_eval.logs import sidecar
from esr_eval.logs.replay import OFF_TOPIC, Response, read_responses
from esr_eval.scorers.phrases import find_restarts
from esr_eval.solvers import boost_of, provider_of, runtime_of
from esr_eval.spec import Readout, Runtime, Steering, fingerprint

Which = Literal["multi_attempt", "all", "auto"]
MEANS = "activation_means"
"""Where a sample's store keeps the mean over the answer of each set of latents."""
BOOSTED = "boosted"
"""Name of the array of the boosted latent; other sets go by their own names."""
SAME = ("model", "revision", "adapter", "sae", "steering_layer")
"""What a log's runtime must share with the one that reads its answers again."""


class Episode(NamedTuple):
    """A stored response.

    Attributes:
        id: Of its sample.
        trial: Its trial.
        text: What was asked.
        response: What was answered.
        multi_attempt: Whether the judge found several attempts in it, or the phrase detector a
            restart: each misses some that the other finds.
        first_score: Of its first attempt; None without a verdict.
    """

    id: str
    trial: Trial
    text: str
    response: str
    multi_attempt: bool
    first_score: float | None = None


class Episodes(NamedTuple):
    """The responses chosen from a log.

    Attributes:
        chosen: In the order of the log's dataset.
        which: By what: `multi_attempt` or `all`.
        responses: How many the log has.
        multi_attempt: How many of them have several attempts.
        source: How a new log names the log.
        controls: Steered answers without a restart that are read beside those with one.
        matched: How many of the controls have a latent in common with the answer they stand for.
    """

    chosen: list[Episode]
    which: str
    responses: int
    multi_attempt: int
    source: dict[str, str]
    controls: list[Episode]
    matched: int


def read_episodes(
    path: str,
    runtime: Runtime,
    condition: Condition,
    which: Which = "all",
    count: int | None = None,
    seed: int = 0,
    controls: bool = False,
) -> Episodes:
    """Choose stored responses of a log.

    Args:
        path: The log.
        runtime: Of the model that will read them.
        condition: What every trial of the log must be.
        which: Responses with several attempts, all, or (`auto`) the former where there are any.
        count: Most responses; more are drawn from at random. None takes all.
        seed: Of the draw.
        controls: Whether to choose as many responses without a restart, too, where those with one
            were chosen.

    Raises:
        EsrError: The log cannot be read, is of another condition or model, or has no such
            response.
    """
    if count is not None and count < 1:
        raise EsrError(f"episodes={count} leaves nothing to read.")
    responses, source = read_responses(path)
    if any(one.trial.condition != condition for one in responses):
        raise EsrError(f"{path} holds trials that are not {condition}: name another log.")
    if any(one.trial.vector is not None for one in responses):
        raise EsrError(
            f"{path} was steered by plain vectors, which no latent stands for: name a log whose "
            "boosts are latents'."
        )
    header = read_eval_log(path, header_only=True)
    _check_runtime(path, header, runtime)
    place = {name: at for at, name in enumerate(header.eval.dataset.sample_ids or [])}
    found = _with_scores(path, responses)
    # Logs keep samples as they ended; the draw must not depend on who was quicker.
    found.sort(key=lambda one: (place.get(one.id, len(place)), one.id))
    multi = [one for one in found if one.multi_attempt]
    if which == "multi_attempt" and not multi:
        raise EsrError(
            f"None of the {len(found)} responses of {path} has several attempts (neither its "
            "judge nor the phrase detector found a restart): pass which=all to read them all the "
            "same, or another log as source=."
        )
    taken = multi if which != "all" and multi else found
    chosen = taken
    if count is not None and count < len(taken):
        draw = random.Random(f"episodes-{seed}").sample(range(len(taken)), count)  # noqa: S311
        chosen = [taken[index] for index in sorted(draw)]
    name = "multi_attempt" if taken is multi else "all"
    beside, matched = _controls(chosen, found, seed) if controls and taken is multi else ([], 0)
    return Episodes(chosen, name, len(found), len(multi), source, beside, matched)


def _controls(
    chosen: Sequence[Episode], found: Sequence[Episode], seed: int
) -> tuple[list[Episode], int]:
    """For each chosen response one without a restart, and how many of these have its latent.

    Off-topic ones come before others, for it is off-topic text that is compared; a response of
    whose latent none is left gets one of another latent.
    """
    rest = [one for one in found if not one.multi_attempt]
    random.Random(f"controls-{seed}").shuffle(rest)  # noqa: S311
    rest.sort(key=lambda one: one.first_score is None or one.first_score >= OFF_TOPIC)
    taken: list[Episode] = []
    for episode in chosen:
        same = next((one for one in rest if one.trial.latent == episode.trial.latent), None)
        if same is not None:
            rest.remove(same)
            taken.append(same)
    matched = len(taken)
    return [*taken, *rest[: len(chosen) - matched]], matched


def _check_runtime(path: str, header: EvalLog, runtime: Runtime) -> None:
    metadata = header.eval.metadata or {}
    if metadata.get("until_token"):
        raise EsrError(
            f"In {path} the boost ended early, but answers are read with the boost on throughout: "
            "name another log as source=."
        )
    stored = metadata.get("runtime")
    if stored is None:
        return
    theirs, ours = Runtime.model_validate(stored).model_dump(), runtime.model_dump()
    unlike = [name for name in SAME if theirs[name] != ours[name]]
    if unlike:
        said = ", ".join(f"{name} {theirs[name]} instead of {ours[name]}" for name in unlike)
        raise EsrError(
            f"{path} was made by another model ({said}): pass its --model and -M arguments."
        )


def _with_scores(path: str, responses: Sequence[Response]) -> list[Episode]:
    judged = {
        Trial.model_validate(sample.metadata): (str(sample.id), sample.scores or {})
        for sample in read_eval_log_sample_summaries(path)
        if sample.epoch == 1
    }
    found = []
    for one in responses:
        name, scores = judged[one.trial]
        multi = any(_several(score.value) for score in scores.values())
        multi = multi or bool(find_restarts(one.response, one.text))
        found.append(Episode(name, one.trial, one.text, one.response, multi, one.first_score))
    return found


def _several(value: Any) -> bool:
    """Whether a score of esr_eval/attempts says so."""
    number = value.get("multi_attempt") if isinstance(value, dict) else None
    return isinstance(number, int | float) and not math.isnan(number) and number > 0


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
