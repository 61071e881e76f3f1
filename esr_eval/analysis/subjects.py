"""The named subjects as a table: what each needs, and whether this machine can hold it."""

from rich.table import Table

from esr_eval.subjects import Subject, subjects
from esr_eval.weights import HEADROOM, gpu_memory_gib, main_memory_gib


def subject_table() -> Table:
    """All named subjects."""
    gpus = gpu_memory_gib()
    have = sum(gpus) if gpus else main_memory_gib()
    where = f"{len(gpus)} GPU(s), {have:.0f} GiB" if gpus else f"no GPU, {have:.0f} GiB of memory"
    table = Table(title="Subjects: inspect eval esr_eval/esr --model esr/NAME")
    for column in ("name", "model", "layers", "steered at", "SAE", "latents"):
        table.add_column(column, overflow="fold")
    table.add_column("weights GiB", justify="right")
    table.add_column("grader", overflow="fold")
    table.add_column("fits here")
    for subject in subjects().values():
        table.add_row(*_cells(subject, have))
    table.caption = (
        f"This machine: {where}. Besides the weights, count {HEADROOM - 1:.0%} for all else."
    )
    return table


def _cells(subject: Subject, have: float) -> tuple[str, ...]:
    parts = (subject.sae.release, subject.sae.sae_id) if subject.sae else ("-", None)
    weights = subject.weights_gib
    return (
        subject.name,
        subject.model.rpartition("/")[2],
        _number(subject.n_layers),
        _number(subject.steering_layer),
        " ".join(part for part in parts if part),
        _number(subject.n_latents),
        "?" if weights is None else f"{weights:.1f}",
        subject.grader,
        "?" if weights is None else ("yes" if weights * HEADROOM <= have else "no"),
    )


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
