"""What a run finds out by itself before its trials: which latents are fit, and how strongly.

A trial whose latent or strength is not known when the run is planned waits here. Latents are
chosen for all at once, strengths are searched for each latent when its first trial comes; both go
through the caches that `esr-eval latents select` and `esr-eval calibrate` use, so a run that was
interrupted goes on, and the next one starts at once.
"""

import json
import logging
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser, Model, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, display_counter

from esr_eval._util.files import keep, kept
from esr_eval._util.paths import cache_root
from esr_eval.calibration.bisection import calibration_prior
from esr_eval.calibration.cost import Cost
from esr_eval.calibration.methods import responses_per_latent
from esr_eval.calibration.residual import Residual, measured_residual
from esr_eval.calibration.store import runtime_key
from esr_eval.calibration.strengths import Strengths, parse_strength
from esr_eval.data.trial import Strength, Trial
from esr_eval.dataset import Latent, Prompt, choose_prompts, load_latents
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers.concreteness import rate_concreteness
from esr_eval.scorers.grader import grader_model
from esr_eval.selection.rules import REASONS, Activity, Finding, Reason
from esr_eval.solvers import provider_of, runtime_of, subject_of
from esr_eval.spec import Readout, Steering

logger = logging.getLogger(__name__)

FACTOR = 3
"""Candidates drawn at a time for each latent that is wanted (paper: 3)."""
MOST_FACTOR = 30
"""Candidates after which the choice gives up, for each latent that is wanted."""
MIN_CONCRETENESS = 65.0
"""Lowest concreteness of a label (paper)."""


class PassedOver(NamedTuple):
    """A candidate that is not fit, and why."""

    latent: int
    label: str
    reason: Reason


class LatentChoice:
    """A run's latents: of a random order of the labelled ones, the first that are fit.

    Fit are concrete labels, by the judge, of latents that are silent on every task prompt (paper,
    choice of latents). The order depends on the seed alone.
    """

    def __init__(
        self, labels: str | None, wanted: int, topics: list[str] | None, seed: int
    ) -> None:
        """Take the arguments; nothing is asked yet.

        Args:
            labels: File of labels; None takes the subject's own.
            wanted: How many latents the run needs.
            topics: Topics of the tasks that they must have nothing to do with; None is all.
            seed: Seed of the order.
        """
        self._labels, self._wanted, self._seed = labels, wanted, seed
        self._tasks = choose_prompts(topics)
        self._lock = anyio.Lock()
        self._kept: list[Latent] = []
        self._passed: list[list[PassedOver]] = [[]]
        self._tried = self._beyond = 0

    async def chosen(self, model: Model) -> list[Latent]:
        """The latents, in order; fewer than are wanted where there are no more."""
        async with self._lock:
            order = await self._order(model)
            most = min(len(order), MOST_FACTOR * self._wanted)
            while len(self._kept) < self._wanted and self._tried < most:
                await self._try(model, order[self._tried : self._tried + FACTOR * self._wanted])
        return self._kept[: self._wanted]

    async def latent(self, model: Model, number: int) -> tuple[Latent, list[PassedOver]]:
        """One of the latents, and the candidates that were passed over between it and the last.

        Raises:
            EsrError: So many are not fit.
        """
        kept = await self.chosen(model)
        if number >= len(kept):
            raise EsrError(
                f"Only {len(kept)} of the {self._wanted} wanted latents are fit (concrete by the "
                f"judge, silent on the tasks) among {self._tried} that were tried: ask for fewer "
                "(-T n_latents=), or pass the latents as -T latents=."
            )
        return kept[number], self._passed[number]

    def told(self) -> str:
        """How many were tried, and why some were passed over."""
        reasons = Counter(one.reason for passed in self._passed for one in passed)
        why = ", ".join(f"{REASONS[reason]}: {n}" for reason, n in reasons.most_common())
        kept = min(len(self._kept), self._wanted)
        said = f"{kept} latents are fit of {self._tried} tried" + (f" ({why})" if why else "")
        beyond = f"; labels of latents that the SAE does not have: {self._beyond}"
        return said + (beyond if self._beyond else "")

    async def _order(self, model: Model) -> list[Latent]:
        labelled = load_latents(subject_of(model), self._labels, runtime_of(model))
        sae = (await provider_of(model).ready()).sae
        if sae is not None:  # a list of others may name latents that the SAE does not have
            there = [one for one in labelled if one.index < sae.config.n_latents]
            self._beyond, labelled = len(labelled) - len(there), there
        return random.Random(f"latents-{self._seed}").sample(labelled, len(labelled))  # noqa: S311

    async def _try(self, model: Model, candidates: Sequence[Latent]) -> None:
        provider, grader = provider_of(model), grader_model(str(model))
        rated = await rate_concreteness(grader, [latent.label for latent in candidates])
        scores = {rating.label: rating for rating in rated}
        concrete = [
            latent
            for latent in candidates
            if (scores[latent.label].score or 0.0) >= MIN_CONCRETENESS
        ]
        active = await activity_on(provider, self._tasks, [one.index for one in concrete])
        for latent in candidates:
            finding = Finding(
                activity=active.get(latent.index, _SILENT),
                concreteness=scores[latent.label].score,
                unrated_because=scores[latent.label].reason,
            )
            rejection = finding.rejection("zero", MIN_CONCRETENESS)
            if rejection is None:
                self._kept.append(latent)
                self._passed.append([])
            else:
                self._passed[-1].append(PassedOver(latent.index, latent.label, rejection))
        self._tried += len(candidates)
        display_counter("Latents", f"{min(len(self._kept), self._wanted)} fit of {self._tried}")


_SILENT = Activity(max_activation=0.0, prompt=None, best_rank=None)


async def activity_on(
    provider: ESRModelAPI, asked: Sequence[Prompt], latents: Sequence[int]
) -> dict[int, Activity]:
    """Largest activation of some latents over the task prompts, kept for each latent.

    The begin-of-text token is left out: thousands of latents fire there and mean nothing.

    Args:
        provider: The model under test.
        asked: The tasks; each stands in the model's chat template, ready to be answered.
        latents: Which latents.

    Raises:
        EsrError: The runtime does not say which layer the SAE was trained on.
    """
    layer = provider.runtime.feature_layer
    if layer is None:
        raise EsrError("Say which layer the SAE was trained on, to read there: -M feature_layer=.")
    first = max(1, provider.runtime.skip_first)
    key = runtime_key(
        provider.runtime.model_copy(update={"skip_first": first}),
        prompts=[prompt.text for prompt in asked],
    )
    path = cache_root() / "activity" / f"{key}.json"
    known = kept(path, _activities) or {}
    if missing := [latent for latent in latents if latent not in known]:
        spec = Steering(
            runtime=provider.runtime,
            readouts=(
                Readout(latents=tuple(missing), layer=layer, reduce="tokens", positions="prompt"),
            ),
        )
        dropped = first - provider.runtime.skip_first

        async def highest(prompt: Prompt) -> Sequence[float]:
            chat: list[ChatMessage] = [
                ChatMessageUser(content=prompt.text),
                ChatMessageAssistant(content=""),
            ]
            values = (await provider.read(chat, spec)).values[0]
            return [float(row[dropped:].max(initial=0.0)) for row in values]

        found = await collect(*(highest(prompt) for prompt in asked))
        for place, latent in enumerate(missing):
            value, topic = max(
                (maxima[place], prompt.topic) for maxima, prompt in zip(found, asked, strict=True)
            )
            known[latent] = Activity(
                max_activation=max(0.0, value), prompt=topic if value > 0 else None, best_rank=None
            )
        keep(path, {latent: one.model_dump(mode="json") for latent, one in sorted(known.items())})
    return {latent: known[latent] for latent in latents}


def _activities(text: str) -> dict[int, Activity]:
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise ValueError("it is no table of activations")
    return {int(latent): Activity.model_validate(one) for latent, one in entries.items()}


@solver
def choose_latent(labels: str | None, wanted: int, seed: int) -> Solver:
    """Find the latent of samples that only count it.

    Args:
        labels: File of labels; None takes the subject's own.
        wanted: How many latents to choose.
        seed: Seed of the choice.
    """
    choice = LatentChoice(labels, wanted, None, seed)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        latent, passed = await choice.latent(get_model(), state.metadata["latent"])
        state.metadata.update(latent=latent.index, label=latent.label)
        state.store.set(PASSED_OVER, [one._asdict() for one in passed])
        return state

    return solve


class _Shared(NamedTuple):
    latents: list[Latent]
    residual: Residual | None


@solver
def prepare(
    strength: str | float,
    seed: int,
    trials: int,
    labels: str | None = None,
    wanted: int | None = None,
    topics: list[str] | None = None,
    latents: list[tuple[int, str]] | None = None,
    prior: dict[str, Any] | None = None,
    levels: list[float] | None = None,
) -> Solver:
    """Find the latent and the strength of trials that wait for them.

    What was found stands in the sample's metadata, as if it had been known from the beginning.

    Args:
        strength: As in the task.
        seed: Seed of the choice, and of the searches.
        trials: Trials of the run, for the estimate.
        labels: File of labels to choose latents from; None takes the subject's own.
        wanted: How many latents to choose; None where they are known.
        topics: Topics that the latents must have nothing to do with; None is all.
        latents: The run's latents where they are known, with their labels.
        prior: Changes to the prior of the searches.
        levels: Of a sweep, distances from the mean of all strengths in their SDs; a trial's own
            level is one of these, rounded.
    """
    strengths = Strengths(parse_strength(strength), prior, seed)
    choice = None if wanted is None else LatentChoice(labels, wanted, topics, seed)
    known = [Latent(index=index, label=label) for index, label in latents or []]
    lock = anyio.Lock()
    made: list[_Shared | EsrError] = []

    async def shared(model: Model, steered: bool) -> _Shared:
        """What all trials share: found, and told, before the first."""
        async with lock:
            if not made:
                try:
                    every = known if choice is None else await choice.chosen(model)
                    residual = await measured_residual(model) if steered else None
                    searched = strengths.know(model, every) if steered else 0
                    if choice is not None:
                        logger.warning("%s.", choice.told())
                    for doubt in residual.warnings() if residual else []:
                        logger.warning("%s: %s.", subject_of(model).name, doubt)
                    cost = _cost(model, searched, prior, trials, residual)
                    logger.warning(
                        "This run takes at most %s (%d of %d strengths to be found).",
                        cost,
                        searched,
                        len(every),
                    )
                    made.append(_Shared(every, residual))
                except EsrError as error:  # no trial after the first would fare better
                    made.append(error)
        if isinstance(made[0], EsrError):
            raise made[0]
        return made[0]

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        trial = state.metadata_as(Trial)
        if not trial.pending:
            return state
        model, steered = get_model(), trial.condition == "steered"
        # Changed in place: scores are clustered by what this very dictionary says.
        about = state.metadata
        every, residual = await shared(model, steered)
        latent = Latent(index=trial.latent, label=trial.label)
        if choice is not None:
            latent, passed = await choice.latent(model, trial.latent)
            about.update(latent=latent.index, label=latent.label)
            state.store.set(PASSED_OVER, [one._asdict() for one in passed])
        if residual is not None:
            if trial.level is None:
                found = await strengths.of(model, latent)
            else:
                found = await _at_level(model, strengths, every, _exact(trial.level, levels))
            about.update(strength=found.value, strength_found=found.how)
            about.update(_told(provider_of(model), residual, latent, found.value))
        about.pop("pending", None)
        return state

    return solve


PASSED_OVER = "latents_passed_over"
"""Key of the sample store: candidates between this trial's latent and the one before."""


def _exact(level: float, levels: Sequence[float] | None) -> float:
    return min(levels or [level], key=lambda exact: abs(exact - level))


async def _at_level(
    model: Model, strengths: Strengths, latents: Sequence[Latent], level: float
) -> Strength:
    found = await collect(*(strengths.of(model, latent) for latent in latents))
    values = [one.value for one in found]
    if len(values) < 2:
        raise EsrError("A sweep needs two latents or more: their strengths span its range.")
    value = max(0.0, statistics.mean(values) + level * statistics.stdev(values))
    return Strength(value, "mean and SD of the calibrated")


def _told(
    provider: ESRModelAPI, residual: Residual, latent: Latent, strength: float
) -> dict[str, float]:
    """What a log says of how strong the boost is, and of how well the SAE fits."""
    share = strength * provider.decoder_row(latent.index).added(residual.norm) / residual.norm
    fits = {
        f"{name}_layer_{fit.layer}": round(getattr(fit, name), 4)
        for fit in residual.fits
        for name in ("explained_variance", "l0")
    }
    return {"share_of_norm": round(share, 4), "residual_norm": round(residual.norm, 4), **fits}


def _cost(
    model: Model,
    searched: int,
    prior: dict[str, Any] | None,
    trials: int,
    residual: Residual | None,
) -> Cost:
    subject, judge = subject_of(model), grader_model(str(model))
    searches = searched * responses_per_latent(subject, prior)
    longest = calibration_prior(subject, prior).max_tokens
    return Cost.of(
        subject,
        str(judge),
        generations=searches + trials,
        generated=searches * longest + trials * subject.max_tokens,
        verdicts=searches + trials,
        speed=residual.tokens_per_second if residual else None,
        batched=searches + trials if judge.config.batch else 0,
    )
