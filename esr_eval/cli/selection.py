"""Run the selection through Inspect, show its funnel, and write the latents that are kept."""

from pathlib import Path
from typing import Any

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from rich.table import Table

from esr_eval._util.terminal import Terminal
from esr_eval.data.labels import write_labels
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.selection.rules import Finding, Funnel, check_rule, funnel_of
from esr_eval.selection.survey import FINDING
from esr_eval.subjects import find_subject
from esr_eval.tasks.selection import select_latents


def run_selection(
    subject: str,
    out: Path,
    *,
    task_args: dict[str, Any],
    model_args: dict[str, Any],
    grader: str | None,
    log_dir: str | None,
) -> EvalLog:
    """Select a subject's latents.

    Args:
        subject: A subject's name, Hugging Face id or path.
        out: CSV to write, index_in_sae,label.
        task_args: Arguments of the task `select_latents`.
        model_args: Arguments of the provider. Without `skip_first` at least the first position
            is left out: at the begin-of-text token thousands of latents fire and mean nothing.
        grader: Judge; None takes the subject's.
        log_dir: Where Inspect keeps the log.

    Raises:
        EsrError: The run did not end well, no latent is kept, or the file cannot be written.
    """
    name = subject.removeprefix("esr/")
    (log,) = inspect_eval(
        select_latents,
        model=f"esr/{name}",
        model_args={"skip_first": max(1, find_subject(name).skip_first), **model_args},
        model_roles={"grader": grader} if grader else None,
        task_args={key: value for key, value in task_args.items() if value is not None},
        log_dir=log_dir,
    )
    if log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The selection ended early{why}. The same command asks the judge only for what it "
            "has not rated yet."
        )
    funnel, kept = read_selection(log)
    console = Terminal()
    console.print(funnel_table(funnel, log))
    if not kept:
        raise EsrError("No latent is kept: no file was written.")
    if funnel.wanted is not None and len(kept) < funnel.wanted:
        console.print(
            f"{len(kept)} of the {funnel.wanted} wanted: raise --factor for more candidates."
        )
    write_labels(out, ((latent.index, latent.label) for latent in kept))
    console.print(f"{len(kept)} latents written to {out}; every candidate's reason: {log.location}")
    return log


def read_selection(log: EvalLog) -> tuple[Funnel, list[Latent]]:
    """The funnel of a log of `select_latents`, and the latents it keeps, by index.

    Where more pass than are wanted, the first in the order of the random draw are taken.
    """
    metadata = log.eval.metadata or {}
    rule, least = check_rule(metadata["rule"]), float(metadata["min_concreteness"])
    wanted: int | None = metadata["wanted"]
    samples = {sample.id: sample for sample in log.samples or [] if sample.epoch == 1}
    # In the log samples stand as they ended; the dataset knows the order of the draw.
    drawn = [samples[name] for name in log.eval.dataset.sample_ids or list(samples)]
    findings = [Finding.model_validate(sample.store[FINDING]) for sample in drawn]
    kept = [
        Latent(index=sample.metadata["latent"], label=sample.metadata["label"])
        for sample, finding in zip(drawn, findings, strict=True)
        if finding.rejection(rule, least) is None
    ]
    labelled = int(metadata["labelled"])
    funnel = funnel_of(findings, rule, least, labelled=labelled, wanted=wanted)
    return funnel, sorted(kept[:wanted], key=lambda latent: latent.index)


def funnel_table(funnel: Funnel, log: EvalLog) -> Table:
    """How many latents each step rejects and leaves."""
    metadata = log.eval.metadata or {}
    table = Table(
        title=f"Latents of {metadata['subject']} (judge {metadata['judge']}, concreteness "
        f"{metadata['min_concreteness']:g} or more, rule {metadata['rule']})"
    )
    table.add_column("step")
    table.add_column("rejected", justify="right")
    table.add_column("left", justify="right")
    for step, rejected, left in funnel.rows():
        table.add_row(step, str(rejected) if rejected else "", str(left))
    return table
