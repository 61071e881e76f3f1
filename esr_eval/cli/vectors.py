"""`esr-eval vectors`: concept vectors, taken and calibrated."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval.cli.options import Grader, LogDir, ModelArgs, TaskArgs
from esr_eval.cli.plainly import pairs, plainly
from esr_eval.data.arguments import FILE_TO_READ, FILE_TO_WRITE, NOT_NEGATIVE

app = typer.Typer(help="Concept vectors: take and calibrate.", no_args_is_help=True)


@app.command("extract")
@plainly
def extract_vectors(
    model: Annotated[str, typer.Option(help="Subject, Hugging Face id, or path.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="File to write, .safetensors."), FILE_TO_WRITE
    ],
    corpus: Annotated[
        Path | None,
        typer.Option(help="JSON, concept -> list of texts. Default: the one that ships."),
        FILE_TO_READ,
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Decoder layer. Default: the subject's steering layer."),
        NOT_NEGATIVE,
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrate", help="Find the vectors' strengths, too.")
    ] = False,
    grader: Grader = None,
    model_args: ModelArgs = None,
    log_dir: LogDir = None,
) -> None:
    """Take concept vectors: mean activation on a concept's texts minus that on the others'."""
    from esr_eval.cli.vectors_run import run_extraction, run_vector_calibration

    args = pairs(model_args, "-M")
    run_extraction(model, out, corpus=corpus, layer=layer, model_args=args)
    if calibrated:
        run_vector_calibration(
            model, out, model_args=args, grader=grader, task_args={}, log_dir=log_dir
        )


@app.command("calibrate")
@plainly
def calibrate_vectors(
    file: Annotated[
        Path, typer.Argument(help="File made by `esr-eval vectors extract`."), FILE_TO_READ
    ],
    model: Annotated[str, typer.Option(help="The model that they were taken from.")],
    grader: Grader = None,
    model_args: ModelArgs = None,
    task_args: TaskArgs = None,
    log_dir: LogDir = None,
) -> None:
    """Find each vector's strength (first attempts score 30 of 100) and write it into the file."""
    from esr_eval.cli.vectors_run import run_vector_calibration

    run_vector_calibration(
        model,
        file,
        model_args=pairs(model_args, "-M"),
        grader=grader,
        task_args=pairs(task_args, "-T"),
        log_dir=log_dir,
    )
