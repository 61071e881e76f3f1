"""Stored responses to read activations over: self-correcting episodes, or all responses."""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from inspect_ai.log import EvalLog, read_eval_log, read_eval_log_sample_summaries

from esr_eval.data.trial import Condition, Trial
from esr_eval.errors import EsrError
from esr_eval.logs.replay import Response, read_responses
from esr_eval.scorers.phrases import find_restarts
from esr_eval.spec import Runtime

Which = Literal["multi_attempt", "all", "auto"]
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
    """

    id: str
    trial: Trial
    text: str
    response: str
    multi_attempt: bool


class Episodes(NamedTuple):
    """The responses chosen from a log.

    Attributes:
        chosen: In the order of the log's dataset.
        which: By what: `multi_attempt` or `all`.
        responses: How many the log has.
        multi_attempt: How many of them have several attempts.
        source: How a new log names the log.
    """

    chosen: list[Episode]
    which: str
    responses: int
    multi_attempt: int
    source: dict[str, str]


def read_episodes(
    path: str,
    runtime: Runtime,
    condition: Condition,
    which: Which = "all",
    count: int | None = None,
    seed: int = 0,
) -> Episodes:
    """Choose stored responses of a log.

    Args:
        path: The log.
        runtime: Of the model that will read them.
        condition: What every trial of the log must be.
        which: Responses with several attempts, all, or (`auto`) the former where there are any.
        count: Most responses; more are drawn from at random. None takes all.
        seed: Of the draw.

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
    return Episodes(chosen, name, len(found), len(multi), source)


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
        multi = multi or bool(find_restarts(one.response))
        found.append(Episode(name, one.trial, one.text, one.response, multi))
    return found


def _several(value: Any) -> bool:
    """Whether a score of esr_eval/attempts says so."""
    number = value.get("multi_attempt") if isinstance(value, dict) else None
    return isinstance(number, int | float) and not math.isnan(number) and number > 0
