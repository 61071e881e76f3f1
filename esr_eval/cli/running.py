"""Commands that run models: subjects, calibration, the whole paper."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esr_eval._util.output import Terminal, aside, note, tell
from esr_eval.cli.command import (
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
    command,
    own_options,
    pairs,
    with_pairs,
)
from esr_eval.data.arguments import (
    A_SEED,
    AT_LEAST_ONE,
    FILE_TO_WRITE,
    FOLDER_TO_WRITE,
    GRADERS,
    PORT,
    SHARE,
    Method,
    with_method,
)
from esr_eval.errors import EsrError
from esr_eval.text import one_line

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from rich.table import Table

    from esr_eval.calibration.store import StrengthRecord

if TYPE_CHECKING:
    from esr_eval.paper.run import EvalSet, Step

ASK_FROM_HOURS = 1.0
"""Runs that take longer, or cost money, are begun only after a yes."""

app = typer.Typer()


@app.command()
@command
def subjects() -> None:
    """List the named subjects, what each needs, and whether this machine can hold it."""
    from esr_eval.cli.subjects import subject_table

    Terminal().print(subject_table())


@app.command()
@command
def check(
    subject: Subject,
    latents: Annotated[
        str | None, typer.Option(help="File of labels. Default: the subject's.")
    ] = None,
    grader: Grader = None,
    model_args: ModelArgs = None,
    base_url: Annotated[
        str | None, typer.Option("--model-base-url", help="Address of a server.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Load the model, too: does the SAE fit its own answers?"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Look at all that a run needs, before anything is downloaded or spent.

    Each is ok, a note or a stop with the way out; with a stop the exit code is not 0.
    """
    import anyio
    from inspect_ai.model import get_model

    from esr_eval.checks import every_check, measured_checks
    from esr_eval.cli.subjects import check_table
    from esr_eval.solvers import provider_of

    with aside(as_json):
        model = get_model(
            f"esr/{subject.removeprefix('esr/')}",
            base_url=base_url,
            memoize=False,
            **pairs(model_args, "-M"),
        )
        found = every_check(str(model), provider_of(model), grader, latents)
        stops = [one for one in found if one.state == "stop"]
        if measure and not stops:
            found += anyio.run(measured_checks, model, grader)
    if as_json:
        tell(json.dumps({"subject": subject, "checks": [asdict(one) for one in found]}, indent=1))
    else:
        Terminal().print(check_table(subject, found))
    if stops:
        raise typer.Exit(1)


@app.command()
@command
def play(
    subject: Subject,
    detectors: Annotated[
        str | None,
        typer.Option(help="Latents read over the answers: a file, log, published set or indices."),
    ] = None,
    model_args: ModelArgs = None,
    base_url: Annotated[
        str | None, typer.Option("--model-base-url", help="Address of a server.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1. Default: a free one."), PORT
    ] = None,
    browse: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Open a page on this machine: one task, with and without a boost, side by side.

    Needs Gradio: pip install 'gradio>=6.8,<7'.
    """
    from inspect_ai.model import get_model

    from esr_eval.play.episode import Stage
    from esr_eval.play.page import check_gradio, serve

    check_gradio()
    model = get_model(
        f"esr/{subject.removeprefix('esr/')}",
        base_url=base_url,
        memoize=False,
        **pairs(model_args, "-M"),
    )
    given = [part for one in model_args or [] for part in ("-M", one)]
    given += ["--model-base-url", base_url] if base_url else []
    serve(Stage(model, given, detectors), port, browse)


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
    """Find each latent's strength: where first attempts score 30 of 100.

    Strengths are kept in the cache, where `inspect eval esr_eval/esr` finds them. Interrupted, the
    same command goes on where it stopped.
    """
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
    log_dir: Annotated[
        Path, typer.Option(help="Where logs lie; the run is resumed from there."), FOLDER_TO_WRITE
    ] = (Path("logs/paper")),
    logs: Annotated[
        Path | None, typer.Option("--logs", hidden=True, help="Now --log-dir."), FOLDER_TO_WRITE
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The report. Default: LOG_DIR/report."),
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
    prior: Annotated[
        list[str] | None,
        typer.Option(help="Change the calibration's prior, NAME=VALUE, e.g. samples_per_round=5."),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(help="How strengths are searched: paper, or curve on 40 % of its responses."),
    ] = None,
    rejudge: Annotated[
        float,
        typer.Option(help="Share of the main run that the judge scores again, blind."),
        SHARE,
    ] = 0.2,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only the steps of this task, e.g. ablation, and what they need."),
    ] = None,
    beyond: Annotated[
        bool,
        typer.Option(
            help="Also what the paper does not ask: injected thoughts, protective steering."
        ),
    ] = False,
    model_args: ModelArgs = None,
    tokens_per_second: TokensPerSecond = None,
    judge_price: JudgePrice = None,
    judge_batch: Annotated[
        bool,
        typer.Option(
            "--judge-batch",
            help="Ask the judge in its provider's batch mode: cheaper, within 24 hours.",
        ),
    ] = False,
    max_tokens: MaxTokens = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Run every experiment of the paper as one resumable eval set, and make the report.

    A subject that comes with a tuned twin (the embedded one) gives way to it, and only its main run
    stands beside the twin's: the twin corrects itself, so that there are rates that can move.
    The estimate comes first. Interrupted, the same command goes on where it stopped.
    """
    from dataclasses import replace

    from esr_eval._util.output import Terminal
    from esr_eval.calibration.methods import effort_notes
    from esr_eval.paper.run import EvalSet, finished, run_steps
    from esr_eval.paper.steps import (
        OFFLINE_SECOND_JUDGE,
        choose,
        identity,
        left_out,
        only_steps,
        plan_steps,
    )
    from esr_eval.scorers.grader import check_batches
    from esr_eval.subjects import find_subject, with_tuned_twin

    if logs is not None:
        note("--logs is called --log-dir now, as Inspect calls it; the old name still works.")
        log_dir = logs
    # An adapter that is named is the fine-tuned subject beside the one that is asked for.
    subject, base = with_tuned_twin(model) if adapter is None else (find_subject(model), None)
    run = EvalSet(
        subject,
        pairs(model_args, "-M"),
        adapter,
        grader,
        log_dir,
        max_tokens,
        prior=with_method(pairs(prior, "--prior") or None, method),
        base=base,
        judge_batch=judge_batch,
    )
    if judge_batch:
        check_batches(run.judge)
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
        rejudge=rejudge,
        beyond=beyond,
    )
    run = replace(run, identity=identity(run, choices))
    steps = only_steps(choices, only) if only else plan_steps(choices)
    console = Terminal()
    on_base = ", ".join(step.key for step in steps if step.base)
    if not agreed(
        run,
        steps,
        console,
        title=f"The paper on {run.subject.name}, judged by {run.judge} (at most)",
        notes=[
            *([f"Its base, {base.name}, runs {on_base}."] if base and on_base else []),
            *(f"Left out: experiment {reason}" for reason in left_out(choices) if not only),
            *effort_notes(run.subject, run.prior),
        ],
        speed=tokens_per_second,
        price=judge_price,
        dry_run=dry_run,
        yes=yes,
    ):
        return
    titles = {step.key: f"{n} of {len(steps)}: {step.key}" for n, step in enumerate(steps, 1)}
    made = finished(log_dir, run.identity, console.print, aside=True)
    run_steps(run, steps, made, lambda key: console.rule(titles[key]))

    from esr_eval.logs.conditions import conditions_of
    from esr_eval.logs.stored import read_logs
    from esr_eval.report.page import write_report
    from esr_eval.report.reach import what_can_be_seen

    # A calibration holds no trials, so a report that it is named for would refuse it.
    named = [Path(made[step.key]) for step in steps if step.task != "calibrate"]
    page = write_report(named, output or log_dir / "report")
    for line in what_can_be_seen(conditions_of(read_logs(named, lambda text: None))):
        console.print(line, highlight=False)
    console.print(f"The report: {page}")
    console.print(f"Every trial: inspect view --log-dir {log_dir}")


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
    from esr_eval.paper.estimate import batch_note, estimate, estimate_table
    from esr_eval.paper.run import finished

    subject = run.subject
    if run.max_tokens is not None:
        subject = subject.model_copy(update={"max_tokens": run.max_tokens})
    done = finished(run.folder, run.identity, note)
    console.print(
        estimate_table(title, steps, list(done), subject, run.judge, speed, price, run.judge_batch)
    )
    for line in [*notes, *([batch_note(run.judge)] if run.judge_batch else [])]:
        console.print(line, highlight=False)
    if dry_run:
        return False
    rest = [step for step in steps if step.key not in done]
    cost = estimate(rest, subject, run.judge, speed=speed, price=price, judge_batch=run.judge_batch)
    large = cost.hours is None or cost.hours > ASK_FROM_HOURS or cost.dollars != 0
    if rest and large and not yes and sys.stdin.isatty():
        typer.confirm("Begin?", abort=True)
    return True


def run_calibration(
    subject: str,
    *,
    task_args: dict[str, Any],
    model_args: dict[str, Any],
    grader: str | None,
    max_samples: int,
    export: Path | None,
    log_dir: str | None,
) -> "EvalLog":
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
    from inspect_ai import eval as inspect_eval

    from esr_eval.calibration.store import export_bundle
    from esr_eval.tasks.calibrate import calibrate

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
    records, cached = _records_of(log)
    console.print(strength_table(records, cached))
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


def _records_of(log: "EvalLog") -> "tuple[list[StrengthRecord], set[str]]":
    from esr_eval.calibration.search import CACHED, RECORD
    from esr_eval.calibration.store import StrengthRecord

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


def strength_table(records: "list[StrengthRecord]", cached: set[str]) -> "Table":
    """Calibrated strengths by latent; those whose key is in `cached` took no search."""
    from rich.table import Table

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
