"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval.data.arguments import (
    AT_LEAST_ONE,
    FILE_TO_WRITE,
    GRADER,
    LOG_FOLDER,
    POSITIVE,
    PRICES,
)

Subject = Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")]
Grader = Annotated[
    str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's."), GRADER
]
ModelArgs = Annotated[
    list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
]
TaskArgs = Annotated[
    list[str] | None, typer.Option("-T", help="Task argument, e.g. -T check_samples=0.")
]
LogDir = Annotated[str | None, typer.Option(help="Where Inspect keeps the log."), LOG_FOLDER]
Csv = Annotated[
    Path | None, typer.Option(help="Also write the numbers to this file."), FILE_TO_WRITE
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest response."), AT_LEAST_ONE]
TokensPerSecond = Annotated[
    float | None, typer.Option(help="The subject's speed, for the estimate."), POSITIVE
]
JudgePrice = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Dollars per million tokens that the judge reads, and writes."),
    PRICES,
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only the estimate.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")]
