"""The command `esr-eval scaling`: what steering and the whole paper cost, computed."""

from typing import Annotated

import typer

from esr_eval.commands.plainly import plainly

app = typer.Typer()


@app.command()
@plainly
def scaling(
    subject: Annotated[str, typer.Argument(help="A named subject.")] = "llama-70b",
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="Which: h100 or rtx4090.")] = "h100",
    backend: Annotated[str, typer.Option(help="local, vllm or ndif.")] = "local",
    dtype: Annotated[
        str | None, typer.Option(help="Of weights: bfloat16, float32, fp8 (vllm).")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each copy's batch.")] = 32,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="With the fine-tuned subject's experiment.")
    ] = False,
    vectors: Annotated[int, typer.Option(min=0, help="Concept vectors; 0: without.")] = 0,
    graders: Annotated[int, typer.Option(min=0, help="Further judges; 0: without.")] = 0,
) -> None:
    """Compute what a subject costs: per token, per step, on the wire, and for the whole paper.

    Nothing is loaded or measured. Times are the least that the GPU's data sheet allows; on the
    local backend they are at least what Python takes, as measured on a CPU.
    """
    from esr_eval.scaling import report

    report.show(
        subject,
        gpus=gpus,
        gpu=gpu,
        backend=backend,
        dtype=dtype,
        rows=rows,
        tuned=tuned,
        vectors=vectors,
        graders=graders,
    )
