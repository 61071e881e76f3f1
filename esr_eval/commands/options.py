"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Subject = Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")]
Grader = Annotated[str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")]
ModelArgs = Annotated[
    list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
]
TaskArgs = Annotated[
    list[str] | None, typer.Option("-T", help="Task argument, e.g. -T check_samples=0.")
]
LogDir = Annotated[str | None, typer.Option(help="Where Inspect keeps the log.")]
Csv = Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest response.")]
TokensPerSecond = Annotated[
    float | None, typer.Option(help="The subject's speed, for the estimate.")
]
JudgePrice = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Dollars per million tokens that the judge reads, and writes."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only the estimate.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")]
