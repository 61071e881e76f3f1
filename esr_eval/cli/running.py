"""Commands that run models: subjects, calibration, the whole paper."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval.cli.options import (
    DryRun,
    Grader,
    JudgePrice,
    LogDir,
    MaxTokens,
    ModelArgs,
    Subject,
    TaskArgs,
    TokensPerSecond,
    Yes,
)
from esr_eval.cli.plainly import own_options, pairs, plainly, with_pairs
from esr_eval.data.arguments import A_SEED, AT_LEAST_ONE, FILE_TO_WRITE, FOLDER_TO_WRITE, GRADERS

app = typer.Typer()


@app.command()
@plainly
def subjects() -> None:
    """List the named subjects, what each needs, and whether this machine can hold it."""
    from esr_eval._util.terminal import Terminal
    from esr_eval.cli.subjects import subject_table

    Terminal().print(subject_table())


@app.command()
@plainly
@own_options("latents", "n_latents", "seed", "fresh")
def calibrate(
    subject: Subject,
    latents: Annotated[
        str | None,
        typer.Option(
            help="Indices (7,12,40), or a CSV index_in_sae,label. Default: the subject's."
        ),
    ] = None,
    n_latents: Annotated[
        int | None, typer.Option(help="How many of them, at random."), AT_LEAST_ONE
    ] = None,
    grader: Grader = None,
    model_args: ModelArgs = None,
    task_args: TaskArgs = None,
    seed: Annotated[int, typer.Option(help="Seed of latents, tasks and samplers."), A_SEED] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Search again what is known.")] = False,
    max_samples: Annotated[
        int, typer.Option(help="Latents searched at a time; they share batches."), AT_LEAST_ONE
    ] = 64,
    export: Annotated[
        Path | None,
        typer.Option(help="Write the strengths to this file, for a subject to ship."),
        FILE_TO_WRITE,
    ] = None,
    log_dir: LogDir = None,
) -> None:
    """Find each latent's strength: the boost at which first attempts score 30 of 100.

    Strengths are kept in the cache, where `inspect eval esr_eval/esr` finds them. Interrupted, the
    same command goes on where it stopped.
    """
    from esr_eval.cli.calibrate import run_calibration

    run_calibration(
        subject,
        task_args=with_pairs(
            {"seed": seed, "fresh": fresh, "latents": latents, "n_latents": n_latents}, task_args
        ),
        model_args=pairs(model_args, "-M"),
        grader=grader,
        max_samples=max_samples,
        export=export,
        log_dir=log_dir,
    )


@app.command()
@plainly
@own_options("latents", "detectors", "vectors", "graders")
def paper(
    model: Annotated[str, typer.Option(help="Subject, esr/NAME.")] = "esr/smollm2-135m",
    scale: Annotated[str, typer.Option(help="tiny, small, or full (the paper's).")] = "tiny",
    logs: Annotated[
        Path, typer.Option(help="Where logs lie; the run is resumed from there."), FOLDER_TO_WRITE
    ] = (Path("logs/paper")),
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The report. Default: LOGS/report."),
        FOLDER_TO_WRITE,
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all draws."), A_SEED] = 0,
    grader: Grader = None,
    graders: Annotated[
        list[str] | None,
        typer.Option(help="A further judge for the cross-judge experiment."),
        GRADERS,
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter of the fine-tuned subject: path or hub id.")
    ] = None,
    latents: Annotated[str | None, typer.Option(help="File of labelled latents.")] = None,
    detectors: Annotated[
        str | None, typer.Option(help="Set to ablate: file or published name. Default: found.")
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="File of concept vectors.")] = None,
    model_args: ModelArgs = None,
    tokens_per_second: TokensPerSecond = None,
    judge_price: JudgePrice = None,
    max_tokens: MaxTokens = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Run every experiment of the paper as one resumable eval set, and make the report.

    The estimate comes first. Interrupted, the same command goes on where it stopped.
    """
    from esr_eval.paper import command

    command.run(
        model,
        scale=scale,
        logs=logs,
        output=output,
        seed=seed,
        grader=grader,
        graders=graders or [],
        adapter=adapter,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        model_args=pairs(model_args, "-M"),
        speed=tokens_per_second,
        price=judge_price,
        max_tokens=max_tokens,
        dry_run=dry_run,
        yes=yes,
    )
