"""What the page does, without the page: one trial, steered and not, as an evaluation runs it."""

import asyncio
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, Model
from numpy.typing import NDArray

from esr_eval.calibration.strengths import Strengths, known_strengths, parse_strength
from esr_eval.data.trial import UNCALIBRATED, Strength
from esr_eval.dataset import Latent, Planned, choose_prompts, draw_trials, load_latents
from esr_eval.detectors.choice import DetectorSet, load_detectors, published_sets
from esr_eval.errors import EsrError
from esr_eval.scorers.phrases import Restart, find_restarts_aside
from esr_eval.solvers import boost_of, provider_of, runtime_of, steering_config, subject_of
from esr_eval.spec import Readout, Steering

if TYPE_CHECKING:
    from esr_eval.steering.requests import Row

Side = Literal["unsteered", "steered"]
SIDES: tuple[Side, ...] = ("unsteered", "steered")
EVERY = 0.2
"""Seconds between two looks at what has been generated."""


class Ask(NamedTuple):
    """What the page's fields say.

    Attributes:
        latent: What is boosted, and its label.
        topic: Of the task.
        strength: Of the boost.
        seed: Of the draw, as `-T seed=`.
        until_token: Generated token from which on the boost is off; None leaves it on.
        max_tokens: Longest answer.
    """

    latent: Latent
    topic: str
    strength: float
    seed: int
    until_token: int | None
    max_tokens: int


@dataclass
class Answer:
    """One side's answer so far; what is marked in it stands when it is whole.

    Attributes:
        text: The answer.
        restarts: What the phrase detector finds.
        lanes: Mean activation of sets of latents at every token, by name of the set.
        offsets: Characters of every token, (tokens, 2).
        receipt: What the boost changed, in words.
    """

    text: str = ""
    restarts: Sequence[Restart] = ()
    lanes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    receipt: str = ""


class Stage:
    """A model with its labelled latents, ready to be asked."""

    def __init__(self, model: Model, given: Sequence[str], detectors: str | None = None) -> None:
        """Look for all that may stand in the way, before weights load.

        Args:
            model: `esr/NAME`.
            given: Options that say how it is run, as they are repeated: `-M`, `dtype=bfloat16`.
            detectors: Latents to read over the answers, as a task's `detectors`. None: those that
                are published for this SAE, if any are.

        Raises:
            EsrError: The model cannot be steered, or has no labelled latents or such detectors.
        """
        self.model, self.given = model, tuple(given)
        self.provider, self.runtime = provider_of(model), runtime_of(model)
        self.subject = subject_of(model)
        self.provider.preflight()
        found = load_latents(self.subject, None, self.runtime)
        self.latents = {latent.index: latent for latent in found}
        self.detectors = self._detectors(detectors)
        if detectors is not None and self.runtime.feature_layer is None:
            raise EsrError(
                "Say which layer the SAE was trained on, to read there: -M feature_layer=."
            )
        self._prior = Strengths(parse_strength("prior"), None, 0)

    def _detectors(self, given: str | None) -> DetectorSet | None:
        if given is not None:
            return load_detectors(given, self.runtime)
        for name in published_sets():
            try:
                return load_detectors(name, self.runtime)
            except EsrError:  # of another SAE
                continue
        return None

    def matching(self, text: str, most: int = 200) -> list[Latent]:
        """Latents whose label or index has a text in it, at most so many."""
        wanted = text.strip().casefold()
        found = (
            latent
            for latent in self.latents.values()
            if wanted in latent.label.casefold() or wanted == str(latent.index)
        )
        return [latent for latent, _ in zip(found, range(most), strict=False)]

    async def mark(self, latent: Latent) -> Strength:
        """The latent's calibrated strength, or else where a search for it would begin."""
        rule = parse_strength("calibrated")
        judge = self.subject.grader
        known = known_strengths(rule, self.runtime, self.subject, [latent], judge)
        return known.get(latent.index) or await self._prior.of(self.model, latent)

    def planned(self, ask: Ask, side: Side) -> Planned:
        """The trial that an evaluation with these arguments draws.

        Raises:
            EsrError: There is no such topic, or the strength is none.
        """
        rule = parse_strength(ask.strength)
        strengths = {ask.latent.index: Strength(rule.value, "given")}
        asked = choose_prompts([ask.topic])
        return draw_trials([ask.latent], strengths, asked, 1, ask.seed, side)[0]

    def request(self, ask: Ask, side: Side) -> tuple[Planned, GenerateConfig]:
        """The trial, and the settings that an evaluation asks the model with."""
        one = self.planned(ask, side)
        edits = boost_of(one.trial, self.runtime, None, ask.until_token)
        return one, steering_config(
            self.model,
            edits=edits,
            seed=one.trial.seed,
            max_tokens=ask.max_tokens,
            temperature=self.subject.temperature,
        )

    def repeat(self, ask: Ask, side: Side) -> str:
        """The command that runs the same trial as an evaluation."""
        task = {
            "latents": ask.latent.index,
            "topics": ask.topic,
            "trials_per_latent": 1,
            "strength": repr(float(ask.strength)),
            "seed": ask.seed,
        }
        if ask.until_token is not None:
            task["until_token"] = ask.until_token
        if side == "unsteered":
            task["steering"] = "false"
        arguments = [part for name, value in task.items() for part in ("-T", f"{name}={value}")]
        start = ["inspect", "eval", "esr_eval/esr", "--model", str(self.model), *self.given]
        return shlex.join([*start, *arguments, "--max-tokens", str(ask.max_tokens)])

    async def answers(self, ask: Ask) -> AsyncIterator[dict[Side, Answer]]:
        """Both answers as they grow, and at last with what is found in them.

        A local model's are seen token by token; a server's come when they are whole.

        Args:
            ask: What is asked for.

        Raises:
            EsrError: It cannot be carried out.
        """
        settings = {side: self.request(ask, side)[1] for side in SIDES}
        specs = {side: Steering.from_extra_body(one.extra_body) for side, one in settings.items()}
        self.provider.check_latents([ask.latent.index])
        yield {side: Answer() for side in SIDES}
        backend = await self.provider.ready()
        live: dict[Side, str] = {}

        def watch(rows: "Sequence[Row]", tokens: Sequence[list[int]]) -> None:
            # What a latent's mark takes to measure may be generated at the same time.
            for row, chosen in zip(rows, tokens, strict=True):
                for side, spec in specs.items():
                    if row.steering == spec and row.sampling.seed == settings[side].seed:
                        live[side] = backend.response(row, chosen).text

        backend.watch = watch
        asked = asyncio.gather(*(self._answer(ask, side) for side in SIDES))
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=EVERY)
                yield {side: Answer(live.get(side, "")) for side in SIDES}
            yield dict(zip(SIDES, asked.result(), strict=True))
        finally:
            backend.watch = None
            asked.cancel()

    async def _answer(self, ask: Ask, side: Side) -> Answer:
        one, config = self.request(ask, side)
        question = ChatMessageUser(content=one.text)
        output = await self.model.generate([question], config=config)
        answer = Answer(output.completion)
        edited = (output.metadata or {}).get("edited_positions", 0)
        tokens = output.usage.output_tokens if output.usage else 0
        answer.receipt = f"{tokens} tokens, {edited} positions changed"
        answer.restarts = await find_restarts_aside(answer.text, one.text)
        layer = self.runtime.feature_layer
        if answer.text and layer is not None:
            sets: dict[str, tuple[int, ...]] = {f"latent {ask.latent.index}": (ask.latent.index,)}
            if self.detectors is not None:
                sets[f"detectors {self.detectors.name}"] = self.detectors.latents
            read = partial(Readout, layer=layer, reduce="tokens", positions="generated")
            spec = Steering(
                runtime=self.runtime,
                edits=boost_of(one.trial, self.runtime, None, ask.until_token),
                readouts=tuple(read(latents=latents) for latents in sets.values()),
            )
            message = ChatMessageAssistant(content=answer.text)
            reading = await self.provider.read([question, message], spec)
            means = (values.mean(0) for values in reading.values)
            answer.lanes = dict(zip(sets, means, strict=True))
            answer.offsets = reading.offsets
        return answer


def told(strength: Strength) -> str:
    """What the mark on the slider is, in words."""
    if strength.how == UNCALIBRATED:
        return f"not calibrated; a search would begin at {strength.value:.4g}"
    return f"{strength.how}: {strength.value:.4g}"
