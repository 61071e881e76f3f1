"""The named subjects as a table: what each needs, and whether this machine can hold it."""

from collections.abc import Sequence

from esr_eval.data.neuronpedia import label_sources
from esr_eval.model.weights import HEADROOM, gpu_memory_gib, main_memory_gib
from esr_eval.provider.checks import Check
from esr_eval.report.section import Alarm, Column, Table
from esr_eval.subjects import Subject, subjects


def subject_table() -> Table:
    """All named subjects, narrow enough for a terminal of 80 columns."""
    gpus = gpu_memory_gib()
    have = sum(gpus) if gpus else main_memory_gib()
    where = f"{len(gpus)} GPU(s), {have:.0f} GiB" if gpus else f"no GPU, {have:.0f} GiB of memory"
    every = list(subjects().values())
    judges = ", ".join(dict.fromkeys(subject.grader for subject in reversed(every)))
    return Table(
        "Subjects: inspect eval esr_eval/esr --model esr/NAME",
        (
            Column("name", "left", whole=True),
            Column("layers", whole=True),
            Column("GiB", whole=True),
            Column("fits", "left", whole=True),
            Column("model, SAE, labels", "left"),
        ),
        [_cells(subject, have) for subject in every],
        f"This machine: {where}. GiB: the weights alone; about {HEADROOM - 1:.0%} more is needed. "
        f"Layers: how many, and the one that is steered. Judges: {judges}. Labels are fetched by "
        "themselves.",
    )


def check_table(subject: str, found: Sequence[Check]) -> Table:
    """What was looked at before a run, a row each."""
    stops = sum(one.state == "stop" for one in found)
    return Table(
        f"What a run on {subject} needs",
        (Column("check", "left", whole=True), Column("", "left", whole=True), Column("", "left")),
        [
            (one.name, Alarm(one.state) if one.state == "stop" else one.state, one.said)
            for one in found
        ],
        f"{stops} in the way of a run." if stops else "Nothing is in the way of a run.",
    )


def _cells(subject: Subject, have: float) -> tuple[str, ...]:
    weights, sae = subject.weights_gib, subject.sae
    sae_name = " ".join(part for part in (sae.release, sae.sae_id) if part) if sae else "no SAE"
    return (
        subject.name,
        f"{_number(subject.n_layers)} ({_number(subject.steering_layer)})",
        "?" if weights is None else f"{weights:.1f}",
        "?" if weights is None else ("yes" if weights * HEADROOM <= have else "no"),
        f"{subject.model.removeprefix('package:')}\n{sae_name}\n{_labels(subject)}",
    )


def _labels(subject: Subject) -> str:
    if subject.latents is not None:
        return "labels of its own"
    sources = label_sources(subject, subject.runtime())
    # The address of a file is told when it is fetched.
    return sources[0].rpartition("://")[2] if sources else "no labels known"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
