"""The command `esr-eval finetune sweep`: estimate, ask, run, tables."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from esr_eval._util.terminal import Terminal, note
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note
from esr_eval.paper import sweep as sweeping
from esr_eval.paper.command import ASK_FROM_HOURS
from esr_eval.paper.estimate import estimate, estimate_table
from esr_eval.paper.sweep_plan import Sweep
from esr_eval.paper.sweep_steps import all_steps


def run(
    sweep: Sweep,
    *,
    speed: float | None,
    price: tuple[float, float] | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Run a sweep; see `esr-eval finetune sweep --help`.

    Args:
        sweep: What is to be done.
        speed: Tokens per second that the subject generates, where it is not known.
        price: Dollars per million tokens that the judge reads and writes, likewise.
        dry_run: Tell what it takes, and no more.
        yes: Begin without asking.
    """
    console, subject = Terminal(), sweep.subject
    if sweep.sizes.max_tokens is not None:
        subject = subject.model_copy(update={"max_tokens": sweep.sizes.max_tokens})
    steps, done, judge = all_steps(sweep), sweeping.done_steps(sweep, note), sweep.paper().judge
    table = estimate_table(steps, list(done), subject, judge, speed, price)
    table.title = f"Mixes of {subject.name}, judged by {judge} (at most; training comes on top)"
    console.print(table)
    for line in sweeping.training_lines(sweep):
        console.print(f"Training {line}", highlight=False)
    if dry_run:
        return
    rest = [step for step in steps if step.key not in done]
    cost = estimate(rest, subject, judge, speed=speed, price=price)
    large = cost.hours is None or cost.hours > ASK_FROM_HOURS or cost.dollars != 0
    if rest and large and not yes and sys.stdin.isatty():
        typer.confirm("Begin?", abort=True)
    logs = sweeping.run(sweep, console.rule)
    # Calibrations lie there, too, and have no place in the tables.
    print_tables([logs], None, note=lambda text: None)
    console.print(f"The report: esr-eval report {logs}", soft_wrap=True)


def print_tables(logs: Sequence[Path], csv: Path | None, note: Note) -> None:
    """Print what tuned subjects do under the boost, and what their training costs.

    Args:
        logs: Logs and folders of logs.
        csv: File that the numbers go to, too.
        note: Told of logs that are left out.

    Raises:
        EsrError: No log is of a subject with an adapter.
    """
    from esr_eval._util.spreadsheet import write_frame
    from esr_eval.logs.conditions import conditions_of
    from esr_eval.logs.stored import read_logs
    from esr_eval.report.finetuning import finetuning_of
    from esr_eval.report.finetuning_table import finetuning_frame, finetuning_tables

    found = finetuning_of(conditions_of(read_logs(logs, note)))
    if found is None:
        raise EsrError(
            "None of these logs is of a fine-tuned subject: run esr_eval/finetuned with "
            "-M adapter=PATH, or `esr-eval finetune sweep`."
        )
    console = Terminal()
    for table in finetuning_tables(found):
        console.print(table)
    if csv is not None:
        write_frame(csv, finetuning_frame(found))
