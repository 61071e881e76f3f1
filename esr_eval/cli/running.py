"""Commands that run models: subjects, calibration, the whole paper."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esr_eval.cli.command import command, own_options, pairs, with_pairs
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
from esr_eval.data.arguments import A_SEED, AT_LEAST_ONE, FILE_TO_WRITE, FOLDER_TO_WRITE, GRADERS

if TYPE_CHECKING:
    from esr_eval._util.terminal import Terminal
    from esr_eval.paper.run import EvalSet, Step

ASK_FROM_HOURS = 1.0
"""Runs that take longer, or cost money, are begun only after a yes."""

app = typer.Typer()


@app.command()
@command
def subjects() -> None:
    """List the named subjects, what each needs, and whether this machine can hold it."""
    from esr_eval._util.terminal import Terminal
    from esr_eval.cli.subjects import subject_table

    Terminal().print(subject_table())


@app.command()
@command
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
@command
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
    from dataclasses import replace

    from esr_eval._util.terminal import Terminal
    from esr_eval.paper.choices import OFFLINE_SECOND_JUDGE, choose, identity
    from esr_eval.paper.run import EvalSet, finished, run_steps
    from esr_eval.paper.steps import left_out, plan_steps
    from esr_eval.subjects import find_subject

    run = EvalSet(find_subject(model), pairs(model_args, "-M"), adapter, grader, logs, max_tokens)
    further = tuple(graders or ())
    if not further and run.judge.startswith("esr-judge/"):
        further = (OFFLINE_SECOND_JUDGE,)
    choices = choose(
        run,
        scale=scale,
        seed=seed,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        graders=further,
    )
    run = replace(run, identity=identity(run, choices))
    steps, console = plan_steps(choices), Terminal()
    if not agreed(
        run,
        steps,
        console,
        title=f"The paper on {run.subject.name}, judged by {run.judge} (at most)",
        notes=[f"Left out: experiment {reason}" for reason in left_out(choices)],
        speed=tokens_per_second,
        price=judge_price,
        dry_run=dry_run,
        yes=yes,
    ):
        return
    titles = {step.key: f"{n} of {len(steps)}: {step.key}" for n, step in enumerate(steps, 1)}
    made = finished(logs, run.identity, console.print, aside=True)
    run_steps(run, steps, made, lambda key: console.rule(titles[key]))

    from esr_eval.report import write_report

    page = write_report([Path(made[step.key]) for step in steps], output or logs / "report")
    console.print(f"The report: {page}")
    console.print(f"Every trial: inspect view --log-dir {logs}")


def agreed(
    run: "EvalSet",
    steps: Sequence["Step"],
    console: "Terminal",
    *,
    title: str,
    notes: Sequence[str],
    speed: float | None,
    price: tuple[float, float] | None,
    dry_run: bool,
    yes: bool,
) -> bool:
    """Tell what is still to do and what it takes, and ask where that is much.

    Args:
        run: The run.
        steps: All its steps.
        console: Where it is told.
        title: Of the estimate.
        notes: Lines below it.
        speed: Tokens per second that the subject generates, where it is not known.
        price: Dollars per million tokens that the judge reads and writes, likewise.
        dry_run: Tell, and no more.
        yes: Do not ask.

    Returns:
        Whether the run is to begin.

    Raises:
        EsrError: The folder holds another run.
    """
    from esr_eval._util.terminal import note
    from esr_eval.paper.estimate import estimate, estimate_table
    from esr_eval.paper.run import finished

    subject = run.subject
    if run.max_tokens is not None:
        subject = subject.model_copy(update={"max_tokens": run.max_tokens})
    done = finished(run.folder, run.identity, note)
    console.print(estimate_table(title, steps, list(done), subject, run.judge, speed, price))
    for line in notes:
        console.print(line, highlight=False)
    if dry_run:
        return False
    rest = [step for step in steps if step.key not in done]
    cost = estimate(rest, subject, run.judge, speed=speed, price=price)
    large = cost.hours is None or cost.hours > ASK_FROM_HOURS or cost.dollars != 0
    if rest and large and not yes and sys.stdin.isatty():
        typer.confirm("Begin?", abort=True)
    return True
