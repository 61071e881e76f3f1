"""Run the calibration task through Inspect and show what came out."""

from pathlib import Path
from typing import Any

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from rich.table import Table

from esr_eval._util.terminal import Terminal
from esr_eval.calibration.record import StrengthRecord
from esr_eval.calibration.search import CACHED, RECORD
from esr_eval.calibration.store import export_bundle
from esr_eval.errors import EsrError
from esr_eval.tasks.calibrate import calibrate
from esr_eval.text import one_line


def run_calibration(
    subject: str,
    *,
    task_args: dict[str, Any],
    model_args: dict[str, Any],
    grader: str | None,
    max_samples: int,
    export: Path | None,
    log_dir: str | None,
) -> EvalLog:
    """Calibrate a subject's latents.

    Args:
        subject: A subject's name, Hugging Face id or path.
        task_args: Arguments of the task `calibrate`.
        model_args: Arguments of the provider.
        grader: Judge; None takes the subject's.
        max_samples: Latents searched at a time.
        export: File to write the strengths to.
        log_dir: Where Inspect keeps the log.

    Raises:
        EsrError: The run did not end well.
    """
    (log,) = inspect_eval(
        calibrate,
        model=f"esr/{subject.removeprefix('esr/')}",
        model_args=model_args,
        model_roles={"grader": grader} if grader else None,
        task_args={name: value for name, value in task_args.items() if value is not None},
        max_samples=max_samples,
        log_dir=log_dir,
    )
    console = Terminal()
    records, cached = _records(log)
    console.print(_table(records, cached))
    if log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The calibration ended early{why}: {len(records)} strengths are kept; the same "
            "command goes on from here."
        )
    failed = len(log.samples or []) - len(records)
    if failed:
        console.print(f"{failed} latents have no strength: the judge gave no usable verdicts.")
    if export is not None:
        export_bundle(export, records)
        console.print(f"{len(records)} strengths written to {export}")
    return log


def _records(log: EvalLog) -> tuple[list[StrengthRecord], set[str]]:
    records, cached = [], set()
    for sample in log.samples or []:
        data = sample.store.get(RECORD)
        if data is None:
            continue

        record = StrengthRecord.model_validate(data)
        records.append(record)
        if sample.store.get(CACHED):
            cached.add(record.key)
    return records, cached


def _table(records: list[StrengthRecord], cached: set[str]) -> Table:
    judges = ", ".join(sorted({record.setting.grader for record in records})) or "none"
    table = Table(title=f"Calibrated strengths (judge: {judges})")
    for column in ("latent", "label", "strength", "90 % of posterior", "score there"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for column in ("responses", "unscored"):
        table.add_column(column, justify="right")
    table.add_column("")
    for record in sorted(records, key=lambda record: record.latent):
        achieved = record.achieved_score
        table.add_row(
            str(record.latent),
            one_line(record.label),
            f"{record.strength:.4g}",
            f"{record.interval[0]:.4g} to {record.interval[1]:.4g}",
            "-" if achieved is None else f"{achieved:.0f}",
            str(record.generations),
            str(record.unscored),
            "cached" if record.key in cached else "",
        )
    return table
