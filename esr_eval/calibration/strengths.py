"""Which strength each latent gets: calibrated, relative to the residual's norm, or one for all.

What is known when a run is planned stands in its trials from the beginning. The rest is found in
the run, once for each latent, when its first trial needs it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from inspect_ai.model import Model
from inspect_ai.util import display_counter

from esr_eval.calibration import store
from esr_eval.calibration.bisection import CHECK_SAMPLES, Search, calibration_prior
from esr_eval.calibration.residual import strength_unit
from esr_eval.calibration.search import StrengthSearch, boost_at
from esr_eval.calibration.store import Setting, StrengthRecord
from esr_eval.data.arguments import StrengthRule, shown, strength_rule
from esr_eval.data.trial import OF_NORM, UNCALIBRATED, Strength
from esr_eval.dataset import Latent, prompts
from esr_eval.errors import EsrError
from esr_eval.scorers.grader import grader_model
from esr_eval.solvers import runtime_of, subject_of
from esr_eval.spec import Runtime
from esr_eval.subjects import CalibrationPrior, Subject


def parse_strength(strength: str | float) -> StrengthRule:
    """Read a task's `strength`.

    Raises:
        EsrError: It is none of its forms, or no strength can have it.
    """
    try:
        return strength_rule(strength)
    except ValueError as error:
        raise EsrError(f"-T strength={shown(strength)} is refused: {error}.") from None


def setting_of(runtime: Runtime, subject: Subject, grader: str, prior: CalibrationPrior) -> Setting:
    """What the strengths of a run on the main tasks are kept under."""
    return Setting.of(
        runtime,
        prior,
        grader,
        prompts=[prompt.text for prompt in prompts()],
        temperature=subject.temperature,
    )


def known_strengths(
    rule: StrengthRule,
    runtime: Runtime,
    subject: Subject,
    latents: Sequence[Latent],
    grader: str,
    prior: Mapping[str, Any] | None = None,
) -> dict[int, Strength]:
    """Strengths that need neither model nor judge, by index of the latent.

    Args:
        rule: What the user asked for.
        runtime: What is steered.
        subject: Its prior and shipped strengths.
        latents: Which latents.
        grader: The judge that a calibrated strength goes by.
        prior: Changes to the prior.

    Raises:
        EsrError: The prior has a field without a valid value.
    """
    if rule.kind == "number":
        return {latent.index: Strength(rule.value, "given") for latent in latents}
    whole = calibration_prior(subject, prior)
    if rule.kind == "prior" and whole.unit == "latent":
        return {latent.index: Strength(whole.prior_mean, UNCALIBRATED) for latent in latents}
    if rule.kind != "calibrated":
        return {}
    setting = setting_of(runtime, subject, grader, whole)
    found, missing = store.calibrated_strengths(setting, latents, subject.strengths)
    alike = store.strengths_alike(setting, subject.strengths) if missing else {}
    found |= {latent.index: alike[latent.index] for latent in missing if latent.index in alike}
    return {
        latent.index: _calibrated(rule, found[latent.index], setting, latent)
        for latent in latents
        if latent.index in found
    }


def _calibrated(
    rule: StrengthRule, record: StrengthRecord, setting: Setting, latent: Latent
) -> Strength:
    how = "calibrated"
    if unlike := record.unlike(setting, latent.label):
        how += f" with another {', '.join(unlike)}"
    if rule.value != 1:
        how += f", times {rule.value:g}"
    return Strength(rule.value * record.strength, how)


class Strengths:
    """The strengths of a run's latents, each found once, by whichever trial needs it first."""

    def __init__(
        self,
        rule: StrengthRule,
        prior: Mapping[str, Any] | None,
        seed: int,
        layer: int | None = None,
    ) -> None:
        """Take the arguments; nothing is asked yet.

        Args:
            rule: What the user asked for.
            prior: Changes to the subject's prior.
            seed: Of the searches' tasks and samplers.
            layer: Where a share of the residual's norm is meant; None is the steering layer.
        """
        self._rule, self._changes, self._seed, self._layer = rule, prior, seed, layer
        self._found: dict[int, Strength | EsrError] = {}
        self._locks: dict[int, anyio.Lock] = {}
        self._rounds: dict[int, int] = {}

    def know(self, model: Model, latents: Sequence[Latent]) -> int:
        """Take what is known of a run's latents; how many strengths have to be searched.

        Looked up once for all: the records of a large run are many.
        """
        subject, runtime = subject_of(model), runtime_of(model)
        grader = str(grader_model(str(model)))
        known = known_strengths(self._rule, runtime, subject, latents, grader, self._changes)
        self._found.update(known)
        return len(latents) - len(known) if self._rule.kind == "calibrated" else 0

    async def of(self, model: Model, latent: Latent) -> Strength:
        """The latent's strength; searched where none is known.

        Raises:
            EsrError: Its search ended without a judged response; told to all its trials.
        """
        async with self._locks.setdefault(latent.index, anyio.Lock()):
            if latent.index not in self._found:
                try:
                    self._found[latent.index] = await self._find(model, latent)
                except EsrError as error:
                    self._found[latent.index] = error
        found = self._found[latent.index]
        if isinstance(found, EsrError):
            raise found
        return found

    async def _find(self, model: Model, latent: Latent) -> Strength:
        subject, rule = subject_of(model), self._rule
        prior = calibration_prior(subject, self._changes)
        unit = None if rule.kind == "rms" else prior
        scale = await strength_unit(model, latent, unit, self._layer)
        if rule.kind == "rms":
            return Strength(rule.value * scale, f"{rule.value:g} {OF_NORM}")
        if rule.kind == "prior":
            return Strength(prior.prior_mean * scale, UNCALIBRATED)
        search = StrengthSearch.of(
            model,
            latent,
            boost_at(model, latent),
            prior,
            subject.temperature,
            CHECK_SAMPLES,
            self._seed,
            scale=scale,
        )

        def on_round(so_far: Search) -> None:
            self._rounds[latent.index] = so_far.counted
            done = sum(rounds >= so_far.most_rounds for rounds in self._rounds.values())
            rounds = sum(self._rounds.values())
            display_counter("Calibrated", f"{done}/{len(self._rounds)} latents, {rounds} rounds")

        record = await search.run(resume=True, on_round=on_round)
        if record is None:
            raise EsrError(
                f"Latent {latent.index} has no strength: too many rounds of its calibration "
                "stayed without a single judged response."
            )
        store.save(record)
        return _calibrated(rule, record, search.setting, latent)
