"""All that can stop a run, looked at first: by the run itself and by `esr-eval check`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inspect_ai.model import Model

from esr_eval.calibration.store import Setting, cache_folder, calibrated_strengths, load_bundle
from esr_eval.dataset import Latent, is_latents_file, load_latents, prompts
from esr_eval.errors import EsrError
from esr_eval.provider.api import ESRModelAPI
from esr_eval.provider.checks import Check, in_order, look, raise_stops
from esr_eval.sae.registry import registered
from esr_eval.scorers.grader import grader_model, judge_model
from esr_eval.spec import Runtime
from esr_eval.subjects import Subject


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
    judge, found = _judge(model, grader)
    found += provider.checks()
    found += look("labels", lambda: labels(subject, latents, runtime))
    name = str(judge) if judge is not None else grader or subject.grader
    found += look("strengths", lambda: strengths(subject, runtime, name, latents))
    return in_order(found)


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
    file = latents if isinstance(latents, str) and is_latents_file(latents) else None
    found = load_latents(subject, file, runtime)
    return f"{len(found)} in {file or subject.latents}"


def label_source(runtime: Runtime) -> str | None:
    """Neuronpedia's name of the SAE, MODEL/SOURCE, where sae-lens's registry has one."""
    entry = registered(runtime.sae) if runtime.sae is not None else None
    return entry.labels if entry else None


def strengths(
    subject: Subject, runtime: Runtime, grader: str, latents: str | int | Sequence[int] | None
) -> Check | str | None:
    """How many of the labelled latents have a strength that a run would find.

    None is in nobody's way; where there are no labels, there is nothing to count.
    """
    file = latents if isinstance(latents, str) and is_latents_file(latents) else None
    try:
        labelled = load_latents(subject, file, runtime)
    except EsrError:
        return None
    if subject.calibration is None:
        return Check("strengths", "note", f"{subject.name} has no calibration prior of its own")
    known = _with_records(labelled, subject)
    setting = Setting.of(
        runtime,
        subject.calibration,
        grader,
        prompts=[prompt.text for prompt in prompts()],
        temperature=subject.temperature,
    )
    found, _ = calibrated_strengths(setting, known, subject.strengths)
    said = f"{len(found)} of {len(labelled)} latents are calibrated with these settings"
    return said if found else Check("strengths", "note", said)


def _with_records(labelled: Sequence[Latent], subject: Subject) -> list[Latent]:
    """Latents of which any strength is kept: to look each of 65,000 up would take minutes."""
    kept = (
        {one.latent for one in load_bundle(subject.strengths).values()}
        if subject.strengths
        else set()
    )
    for path in cache_folder().glob("*.json"):
        kept.add(_latent_of(path))
    return [latent for latent in labelled if latent.index in kept]


def _latent_of(path: Path) -> int | None:
    try:
        latent = json.loads(path.read_text("utf-8")).get("latent")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # damage is told where a strength is looked up
    return latent if isinstance(latent, int) else None
