"""The named subjects as a table: what each needs, and whether this machine can hold it."""

from rich.table import Table

from esr_eval.model.weights import HEADROOM, gpu_memory_gib, main_memory_gib
from esr_eval.subjects import Subject, subjects


def subject_table() -> Table:
    """All named subjects, narrow enough for a terminal of 80 columns."""
    gpus = gpu_memory_gib()
    have = sum(gpus) if gpus else main_memory_gib()
    where = f"{len(gpus)} GPU(s), {have:.0f} GiB" if gpus else f"no GPU, {have:.0f} GiB of memory"
    table = Table(title="Subjects: inspect eval esr_eval/esr --model esr/NAME", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("layers", justify="right", no_wrap=True)
    table.add_column("latents", justify="right", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    table.add_column("model, SAE, grader", overflow="fold")
    for subject in subjects().values():
        table.add_row(*_cells(subject, have))
    table.caption = (
        f"This machine: {where}. GiB: the weights alone; about {HEADROOM - 1:.0%} more is needed. "
        "Layers: how many, and the one that is steered."
    )
    return table


def _cells(subject: Subject, have: float) -> tuple[str, ...]:
    weights, sae = subject.weights_gib, subject.sae
    sae_name = " ".join(part for part in (sae.release, sae.sae_id) if part) if sae else "no SAE"
    return (
        subject.name,
        f"{_number(subject.n_layers)} ({_number(subject.steering_layer)})",
        _number(subject.n_latents),
        "?" if weights is None else f"{weights:.1f}",
        "?" if weights is None else ("yes" if weights * HEADROOM <= have else "no"),
        f"{subject.model.removeprefix('package:')}\n{sae_name}\n{subject.grader}",
    )


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
