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
