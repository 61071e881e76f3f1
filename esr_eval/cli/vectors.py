"""`esr-eval vectors`: concept vectors, taken and calibrated."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esr_eval._util.output import Terminal
from esr_eval.cli.command import (
    Grader,
    LogDir,
    ModelArgs,
    TaskArgs,
    command,
    pairs,
)
from esr_eval.data.arguments import FILE_TO_READ, FILE_TO_WRITE, NOT_NEGATIVE
from esr_eval.errors import EsrError
from esr_eval.subjects import find_subject
from esr_eval.text import one_line

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from rich.table import Table

    from esr_eval.vectors.file import Concept, VectorInfo, VectorStrength

app = typer.Typer(help="Concept vectors: take and calibrate.", no_args_is_help=True)

WEAK = 1.0
"""Separation below which a vector is reported as weak: its texts have little in common."""


@app.command("extract")
@command
def extract(
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
    args = pairs(model_args, "-M")
    run_extraction(model, out, corpus=corpus, layer=layer, model_args=args)
    if calibrated:
        run_vector_calibration(
            model, out, model_args=args, grader=grader, task_args={}, log_dir=log_dir
        )


@app.command("calibrate")
@command
def calibrate(
    file: Annotated[
        Path, typer.Argument(help="File made by `esr-eval vectors extract`."), FILE_TO_READ
    ],
    model: Annotated[str, typer.Option(help="The model that they were taken from.")],
    grader: Grader = None,
    model_args: ModelArgs = None,
    task_args: TaskArgs = None,
    log_dir: LogDir = None,
) -> None:
    """Find each vector's strength (first attempts score 30 of 100) and write it into the file.

    Interrupted, the same command goes on where it stopped.
    """
    run_vector_calibration(
        model,
        file,
        model_args=pairs(model_args, "-M"),
        grader=grader,
        task_args=pairs(task_args, "-T"),
        log_dir=log_dir,
    )


def run_extraction(
    model: str,
    out: Path,
    *,
    corpus: Path | None,
    layer: int | None,
    model_args: dict[str, Any],
) -> "VectorInfo":
    """Take a model's vectors, write them to a file, and show them.

    Args:
        model: A subject's name, Hugging Face id or path.
        out: The file.
        corpus: JSON of concepts and texts; None takes the one that ships.
        layer: Decoder layer; None takes the subject's.
        model_args: Arguments of the provider.

    Raises:
        EsrError: The corpus or model cannot be used.
    """
    from rich.progress import Progress

    from esr_eval.vectors.extract import extract_vectors, load_corpus
    from esr_eval.vectors.file import write_vectors

    if out.suffix != ".safetensors":
        raise EsrError(f"-o {out}: vectors are written to a .safetensors file.")
    texts = load_corpus(corpus)
    console = Terminal()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("Reading texts", total=sum(len(t) for t in texts.values()))
        info, vectors = extract_vectors(
            find_subject(model),
            texts,
            layer=layer,
            model_args=model_args,
            progress=lambda done, of: progress.update(bar, completed=done, total=of),
        )
    gc.collect()  # a calibration that follows loads the model again
    write_vectors(out, info, vectors)
    console.print(vector_table(info))
    console.print(f"{len(vectors)} vectors written to {out}")
    return info


def run_vector_calibration(
    model: str,
    file: Path,
    *,
    model_args: dict[str, Any],
    grader: str | None,
    task_args: dict[str, Any],
    log_dir: str | None,
) -> "VectorInfo":
    """Find the strengths of a file's vectors and write them into it.

    Args:
        model: The model that the vectors were taken from.
        file: The file; it is replaced when every search has ended.
        model_args: Arguments of the provider.
        grader: Judge; None takes the subject's.
        task_args: Arguments of the task `calibrate_vectors`.
        log_dir: Where Inspect keeps the log.

    Raises:
        EsrError: The run did not end well; the file is as it was.
    """
    from inspect_ai import eval as inspect_eval

    from esr_eval.calibration.store import drop_checkpoint
    from esr_eval.tasks.calibrate_vectors import calibrate_vectors
    from esr_eval.vectors.file import load_tensors, read_vectors, write_vectors

    before = read_vectors(str(file))
    (log,) = inspect_eval(
        calibrate_vectors,
        model=f"esr/{model.removeprefix('esr/')}",
        model_args=model_args,
        model_roles={"grader": grader} if grader else None,
        task_args={"vectors": str(file), **task_args},
        max_samples=len(before.info.concepts),
        log_dir=log_dir,
    )
    if log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The calibration ended early{why}: {file} is as it was, and the same command goes on "
            "from here."
        )
    found = strengths_of(log)
    info = with_strengths(before.info, log, found)
    write_vectors(file, info, load_tensors(str(file)))
    for one in found.values():
        if one.key is not None:
            drop_checkpoint(one.key)
    console = Terminal()
    console.print(vector_table(info))
    missing = [concept.name for concept in info.concepts if concept.strength is None]
    if missing:
        console.print(f"No strength, for want of usable verdicts: {', '.join(missing)}")
    console.print(f"{len(info.concepts) - len(missing)} strengths written to {file}")
    return info


def strengths_of(log: "EvalLog") -> "dict[str, VectorStrength]":
    """What a log of `calibrate_vectors` found, by concept."""
    from esr_eval.vectors.file import VECTOR_STRENGTH, VectorStrength

    stored = {str(sample.id): sample.store.get(VECTOR_STRENGTH) for sample in log.samples or []}
    return {
        concept: VectorStrength.model_validate(data)
        for concept, data in stored.items()
        if data is not None
    }


def with_strengths(
    info: "VectorInfo", log: "EvalLog", found: "dict[str, VectorStrength]"
) -> "VectorInfo":
    """A file's metadata with the strengths that a log of `calibrate_vectors` found."""
    metadata = log.eval.metadata or {}

    def updated(concept: "Concept") -> "Concept":
        one = found.get(concept.name)
        change = {
            "strength": round(one.strength, 4) if one else None,
            "achieved_score": one.achieved_score if one else None,
        }
        return concept.model_copy(update=change)

    return info.model_copy(
        update={
            "concepts": tuple(updated(concept) for concept in info.concepts),
            "calibration": {
                "grader": str(metadata["judge"]),
                "temperature": float(metadata["temperature"]),
                **metadata["prior"],
            },
        }
    )


def vector_table(info: "VectorInfo") -> "Table":
    """The vectors of a file, with what is known of each."""
    from rich.table import Table

    judge = f", judge {info.calibration['grader']}" if info.calibration else ""
    table = Table(
        title=f"Concept vectors of {info.model} at layer {info.layer} "
        f"(mean residual norm {info.mean_norm:.4g}{judge})"
    )
    table.add_column("concept")
    for column in ("texts", "separation (SD)", "strength", "score there"):
        table.add_column(column, justify="right")
    table.add_column("")
    for concept in info.concepts:
        score = concept.achieved_score
        table.add_row(
            one_line(concept.name),
            str(concept.texts),
            f"{concept.separation:.2f}",
            "-" if concept.strength is None else f"{concept.strength:.3f}",
            "-" if score is None else f"{score:.0f}",
            "weak: its texts have little in common" if concept.separation < WEAK else "",
        )
    return table
