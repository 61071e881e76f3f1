"""All that can stop a run, looked at first: by the run itself and by `esr-eval check`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from inspect_ai.model import Model

from esr_eval.calibration.bisection import calibration_prior
from esr_eval.calibration.residual import LEAST_EXPLAINED, measured_residual
from esr_eval.calibration.store import strengths_alike
from esr_eval.calibration.strengths import setting_of
from esr_eval.data.arguments import OWN_JUDGE
from esr_eval.data.neuronpedia import kept_labels, label_sources
from esr_eval.dataset import file_of, has_fetched_labels, latents_at_hand, load_latents
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.provider.checks import Check, State, in_order, look, raise_stops
from esr_eval.scorers.grader import grader_model, judge_model
from esr_eval.solvers import provider_of
from esr_eval.spec import Runtime
from esr_eval.subjects import Subject

MOST_ROWS = 500
"""Latents whose boosts are set beside the residual: each takes reading a row of the SAE."""


@dataclass(frozen=True)
class Wanted:
    """What a run needs beside its model.

    Attributes:
        edits: Whether latents are boosted, clamped or read.
        labels: Whether latents are drawn from labels.
        latents: The run's argument of that name: indices, or a file of labels.
    """

    edits: bool = True
    labels: bool = False
    latents: str | int | Sequence[int] | None = None


def open_judge(model: str, provider: ESRModelAPI, wanted: Wanted) -> Model:
    """Find all that stands in the way of a run, and take its judge.

    Args:
        model: The evaluated model's name.
        provider: Its provider.
        wanted: What the run needs beside it.

    Raises:
        EsrError: One or several things stand in the way: all are told.
    """
    judge, beside = _judge(model, None)
    if wanted.labels:
        beside += look("labels", lambda: labels(provider.subject, wanted.latents, provider.runtime))
    provider.preflight(wanted.edits, beside)
    raise_stops(beside)
    assert judge is not None
    return judge


def every_check(
    model: str,
    provider: ESRModelAPI,
    grader: str | None,
    latents: str | int | Sequence[int] | None = None,
) -> list[Check]:
    """Look at everything that a run with latents needs; nothing is loaded or spent.

    Args:
        model: The model's name, as Inspect has it.
        provider: Its provider.
        grader: The judge; None takes the subject's.
        latents: The run's argument of that name.
    """
    subject, runtime = provider.subject, provider.runtime
    name = grader or subject.grader
    if name == OWN_JUDGE:  # outside a run there is no model under test to ask, but here it is
        found = [Check("judge", "ok", name)]
    else:
        judge, found = _judge(model, grader)
        name = str(judge or name)
    found += provider.checks()
    found += look("labels", lambda: labels(subject, latents, runtime))
    found += look("strengths", lambda: strengths(subject, runtime, name, latents))
    return in_order(found)


async def measured_checks(model: Model, grader: str | None) -> list[Check]:
    """Load the model, and look at its residual, the SAE's fit and how strong known boosts are.

    Args:
        model: The model under test.
        grader: The judge that strengths were found by; None takes the subject's.
    """
    provider = provider_of(model)
    subject, runtime = provider.subject, provider.runtime
    residual = await measured_residual(model)
    speed = f", {residual.tokens_per_second:.0f} tokens/s" if residual.tokens_per_second else ""
    found = [
        Check(
            "residual",
            "ok",
            f"median norm {residual.norm:.4g} behind layer {residual.layer} over "
            f"{residual.tokens} tokens of its own answers{speed}",
        )
    ]
    for fit in residual.fits:
        state: State = "ok" if fit.explained_variance >= LEAST_EXPLAINED else "note"
        said = f"layer {fit.layer}: {fit.explained_variance:.0%} of the variance explained, L0 "
        found.append(Check("SAE fit", state, f"{said}{fit.l0:.0f}"))
    found += [Check("SAE fit", "note", warning) for warning in residual.warnings()]
    setting = setting_of(runtime, subject, grader or subject.grader, calibration_prior(subject))
    known = strengths_alike(setting, subject.strengths)
    shares = [
        record.strength * provider.decoder_row(index).added(residual.norm) / residual.norm
        for index, record in list(known.items())[:MOST_ROWS]
    ]
    if shares:
        low, middle, high = np.quantile(shares, (0.05, 0.5, 0.95))
        found.append(
            Check(
                "boosts",
                "ok",
                f"{middle:.2f} of the residual's norm (90 % of {len(shares)} latents: {low:.2f} "
                f"to {high:.2f})",
            )
        )
    return found


def _judge(model: str, grader: str | None) -> tuple[Model | None, list[Check]]:
    try:
        judge = judge_model(grader) if grader else grader_model(model)
    except EsrError as error:
        return None, [Check("judge", "stop", error.message)]
    return judge, [Check("judge", "ok", str(judge))]


def labels(
    subject: Subject, latents: str | int | Sequence[int] | None, runtime: Runtime
) -> Check | str:
    """Whether there are labels to draw latents from, and where they come from.

    Raises:
        EsrError: There are none, or they cannot be read.
    """
    file = file_of(latents)
    if has_fetched_labels(subject, latents) and kept_labels(subject, runtime) is None:
        sources = label_sources(subject, runtime)
        if sources:
            return Check("labels", "note", f"to be fetched from {' or '.join(sources)}")
    found = load_latents(subject, file, runtime)  # tells by itself why there are none
    return f"{len(found)} in {file or subject.latents or 'the cache'}"


def strengths(
    subject: Subject, runtime: Runtime, grader: str, latents: str | int | Sequence[int] | None
) -> Check | str | None:
    """How many of the labelled latents have a strength that a run would find.

    None is in nobody's way; where there are no labels, there is nothing to count.
    """
    file = file_of(latents)
    try:
        labelled = (
            load_latents(subject, file, runtime) if file else latents_at_hand(subject, runtime)
        )
    except EsrError:
        return None
    if not labelled:
        return None
    setting = setting_of(runtime, subject, grader, calibration_prior(subject))
    known = strengths_alike(setting, subject.strengths)
    found = sum(latent.index in known for latent in labelled)
    said = f"{found} of {len(labelled)} latents are calibrated with these settings"
    return said if found else Check("strengths", "note", f"{said}; the run finds what it needs")
