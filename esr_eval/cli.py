"""The command `esr-eval`: what can be run, calibrating it, and tables of what came out.

Evaluations themselves run with Inspect: `inspect eval esr_eval/esr --model esr/NAME`.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from esr_eval.errors import EsrError

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    help="Evaluations of endogenous steering resistance: does a language model notice and correct "
    "activation steering? Run them with `inspect eval esr_eval/esr --model esr/NAME`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
latents_app = typer.Typer(help="Latents: choose which to boost.", no_args_is_help=True)
app.add_typer(latents_app, name="latents")
vectors_app = typer.Typer(help="Concept vectors: take and calibrate.", no_args_is_help=True)
app.add_typer(vectors_app, name="vectors")


def _plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Tell an `EsrError` as its one sentence."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EsrError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None

    return run


@app.command()
@_plainly
def subjects() -> None:
    """List the named subjects, what each needs, and whether this machine can hold it."""
    from rich.console import Console

    from esr_eval.analysis.subjects import subject_table

    Console().print(subject_table())


@app.command()
@_plainly
def calibrate(
    subject: Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")],
    latents: Annotated[
        str | None,
        typer.Option(
            help="Indices (7,12,40), or a CSV index_in_sae,label. Default: the subject's."
        ),
    ] = None,
    n_latents: Annotated[int | None, typer.Option(help="How many of them, at random.")] = None,
    grader: Annotated[
        str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
    ] = None,
    task_args: Annotated[
        list[str] | None, typer.Option("-T", help="Task argument, e.g. -T check_samples=0.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of latents, tasks and samplers.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Search again what is known.")] = False,
    max_samples: Annotated[
        int, typer.Option(help="Latents searched at a time; they share batches.")
    ] = 64,
    export: Annotated[
        Path | None, typer.Option(help="Write the strengths to this file, for a subject to ship.")
    ] = None,
    log_dir: Annotated[str | None, typer.Option(help="Where Inspect keeps the log.")] = None,
) -> None:
    """Find each latent's strength: the boost at which first attempts score 30 of 100.

    Strengths are kept in the cache, where `inspect eval esr_eval/esr` finds them. Interrupted, the
    same command goes on where it stopped.
    """
    from esr_eval.calibrate_run import run_calibration

    run_calibration(
        subject,
        task_args={"seed": seed, "fresh": fresh, "latents": latents, "n_latents": n_latents}
        | _pairs(task_args, "-T"),
        model_args=_pairs(model_args, "-M"),
        grader=grader,
        max_samples=max_samples,
        export=export,
        log_dir=log_dir,
    )


@app.command()
@_plainly
def summary(
    logs: Annotated[list[Path], typer.Argument(help="Logs of the task esr, or folders of logs.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
) -> None:
    """Print the metrics of logs side by side, and paired differences where they share trials."""
    from rich.console import Console

    from esr_eval.analysis.runs import read_runs
    from esr_eval.analysis.summary import metric_table, pair_table, write_csv

    runs = read_runs(logs, note=lambda text: typer.echo(text, err=True))
    console = Console()
    console.print(metric_table(runs))
    pairs = pair_table(runs)
    if pairs is not None:
        console.print(pairs)
    if csv is not None:
        write_csv(csv, runs)


@app.command()
@_plainly
def report(
    logs: Annotated[list[Path], typer.Argument(help="Logs of any task, or folders of logs.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the page and its tables.")
    ] = Path("report"),
) -> None:
    """Make one HTML page and CSV tables of logs: what was asked, and what came out."""
    from esr_eval.analysis.report import write_report

    page = write_report(logs, output, note=lambda text: typer.echo(text, err=True))
    typer.echo(f"The report: {page}")


@app.command()
@_plainly
def paper(
    model: Annotated[str, typer.Option(help="Subject, esr/NAME.")] = "esr/smollm2-135m",
    scale: Annotated[str, typer.Option(help="tiny, small, or full (the paper's).")] = "tiny",
    logs: Annotated[Path, typer.Option(help="Where logs lie; the run is resumed from there.")] = (
        Path("logs/paper")
    ),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The report. Default: LOGS/report.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    grader: Annotated[
        str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")
    ] = None,
    graders: Annotated[
        list[str] | None, typer.Option(help="A further judge for the cross-judge experiment.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter of the fine-tuned subject: path or hub id.")
    ] = None,
    latents: Annotated[str | None, typer.Option(help="File of labelled latents.")] = None,
    detectors: Annotated[
        str | None, typer.Option(help="Set to ablate: file or published name. Default: found.")
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="File of concept vectors.")] = None,
    model_args: Annotated[
        list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="The subject's speed, for the estimate.")
    ] = None,
    judge_price: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Dollars per million tokens that the judge reads, and writes."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest response.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the estimate.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")] = False,
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
        model_args=_pairs(model_args, "-M"),
        speed=tokens_per_second,
        price=judge_price,
        max_tokens=max_tokens,
        dry_run=dry_run,
        yes=yes,
    )


@app.command()
@_plainly
def detectors(
    log: Annotated[Path, typer.Argument(help="Log of the task detectors.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the detector file here.")
    ] = None,
    rule: Annotated[str, typer.Option(help="Which to print: silent or separability.")] = "silent",
    min_mismatched: Annotated[
        float, typer.Option(help="silent: least share of mismatched pairs it is active on.")
    ] = 0.8,
    max_matched: Annotated[
        float, typer.Option(help="silent: greatest share of matched pairs it is active on.")
    ] = 0.0,
    top: Annotated[int, typer.Option(help="separability: how many of greatest AUC.")] = 25,
) -> None:
    """Find off-topic detectors in a discovery log; the file holds the sets of both rules."""
    from rich.console import Console

    from esr_eval.analysis.detector_table import detector_table
    from esr_eval.analysis.detectors import find_detectors
    from esr_eval.discovery.report import check_rule, write_detector_file

    wanted = check_rule(rule)
    report = find_detectors(log, min_mismatched, max_matched, top)
    Console().print(detector_table(report, wanted))
    if output is not None:
        write_detector_file(report, output)
        typer.echo(f"Both sets are in {output}: pass it as -T detectors={output}.")


@app.command()
@_plainly
def compare(
    base: Annotated[Path, typer.Argument(help="The stored log, or a folder of logs.")],
    new: Annotated[Path, typer.Argument(help="The new log, or a folder of logs.")],
    level: Annotated[
        float, typer.Option(help="Of the intervals; false alarms are at most 1 - level.")
    ] = 0.95,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=SIZE: smaller changes are no regression (rates 0.01, first_score 2, "
            "improvement 0.2; completed, the share of trials that may be missing, 0.02)."
        ),
    ] = None,
    worse: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=up, down, either or neither: the direction that is a regression (down "
            "for multi_attempt, esr, first_score, improvement, up for the others); all=either "
            "for code that should change nothing."
        ),
    ] = None,
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Compare other judges and settings too.")
    ] = False,
    same_trials: Annotated[
        bool, typer.Option("--same-trials", help="Refuse a new log with trials of its own.")
    ] = False,
) -> None:
    """Tell whether a new log is worse than a stored one, beyond what noise explains.

    Trials pair by latent, task, seed and epoch where most do. Logs of two folders are matched by
    subject, experiment and condition. A run that failed, or lacks trials, is a regression whatever
    its numbers.

    Exit status: 0, nothing is worse; 1, regression; 2, no verdict: a log cannot be read, or the
    two do not measure the same thing.
    """
    from rich.console import Console

    from esr_eval.analysis.regression import compare_logs, read_logs
    from esr_eval.analysis.regression_table import change_table, read_metrics

    metrics, completed = read_metrics(worse or [], margin or [])
    found = compare_logs(
        read_logs(base),
        read_logs(new),
        metrics=metrics,
        level=level,
        completed_margin=completed,
        allow_differences=allow_differences,
        same_trials=same_trials,
    )
    Console().print(change_table(found, metrics, level))
    for note in found.notes:
        typer.echo(f"Note: {note}", err=True)
    for problem in found.problems:
        typer.echo(f"REGRESSION: {problem}")
    if found.regressed:
        raise typer.Exit(1)


@app.command()
@_plainly
def agreement(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of cross_judge, or logs scored several times.")
    ],
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
) -> None:
    """Print how far judges of the same responses agree, pair by pair."""
    from rich.console import Console

    from esr_eval.analysis.agreement import agreement_of, write_csv
    from esr_eval.analysis.agreement_table import judge_table, pair_table

    reports = [agreement_of(path) for path in logs]
    console = Console()
    for report in reports:
        console.print(judge_table(report))
        console.print(pair_table(report))
    if csv is not None:
        write_csv(csv, reports)


@app.command()
@_plainly
def power(
    base: Annotated[float, typer.Option(help="Rate without the change, in percent.")] = 7.4,
    reduced: Annotated[float, typer.Option(help="Rate with it, in percent.")] = 5.5,
    icc: Annotated[
        float | None,
        typer.Option(help="Correlation of two trials of one latent. Default: 0.1, or the log's."),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Take the clustering from this log; twice: from it and its replay."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Whose clustering: multi_attempt, esr.")] = (
        "multi_attempt"
    ),
    trials_per_latent: Annotated[int, typer.Option(help="In each condition.")] = 10,
    paired: Annotated[
        bool, typer.Option("--paired/--unpaired", help="Same trials replayed, or other latents.")
    ] = True,
    latent_correlation: Annotated[
        float | None,
        typer.Option(
            help="How alike both conditions rank the latents. Default: 0.8, or the logs'."
        ),
    ] = None,
    wanted: Annotated[float, typer.Option("--power", help="Chance to see the change.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided test.")] = 0.05,
) -> None:
    """Tell how many trials and latents it takes to see a rate fall."""
    from rich.console import Console

    from esr_eval.analysis.clustering import clustering_of_logs
    from esr_eval.analysis.power import (
        ASSUMED_ICC,
        ASSUMED_LATENT_CORRELATION,
        Design,
        power_table,
    )

    found = clustering_of_logs([str(path) for path in log or []], metric)
    given = {"icc": icc, "latent_correlation": latent_correlation}
    known = found | {name: value for name, value in given.items() if value is not None}
    design = Design(
        base / 100,
        reduced / 100,
        icc=known.get("icc", ASSUMED_ICC),
        trials_per_latent=trials_per_latent,
        paired=paired,
        latent_correlation=known.get("latent_correlation", ASSUMED_LATENT_CORRELATION),
        pair_correlation=known.get("pair_correlation"),
    )
    designs = [replace(design, icc=0.0, pair_correlation=None), design]
    console = Console()
    console.print(power_table(designs, wanted, alpha))
    for name, value in found.items():
        console.print(
            f"{name.replace('_', ' ')} of the log{'s' if len(log or []) > 1 else ''}: {value:.3f}"
        )


@latents_app.command("select")
@_plainly
def select_latents(
    subject: Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV to write, index_in_sae,label.")],
    latents: Annotated[
        str | None,
        typer.Option(help="Labels: CSV, or a Neuronpedia export. Default: the subject's own."),
    ] = None,
    wanted: Annotated[
        int | None, typer.Option(help="How many are needed. Default: all that pass.")
    ] = None,
    factor: Annotated[float, typer.Option(help="Candidates drawn for each one wanted.")] = 3,
    min_concreteness: Annotated[
        float, typer.Option(help="Lowest concreteness of a label, 0-100 by the judge.")
    ] = 65,
    rule: Annotated[
        str, typer.Option(help="zero: silent on all task prompts; top100: never among the top 100.")
    ] = "zero",
    seed: Annotated[int, typer.Option(help="Seed of the draw of candidates.")] = 0,
    grader: Annotated[
        str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
    ] = None,
    log_dir: Annotated[str | None, typer.Option(help="Where Inspect keeps the log.")] = None,
) -> None:
    """Choose latents to boost: concrete labels, and irrelevant to the tasks.

    Interrupted, the same command asks the judge only for what it has not rated yet.
    """
    from esr_eval.selection.run import run_selection

    task_args = {"latents": latents, "wanted": wanted, "factor": factor, "rule": rule}
    run_selection(
        subject,
        out,
        task_args={**task_args, "min_concreteness": min_concreteness, "seed": seed},
        model_args=_pairs(model_args, "-M"),
        grader=grader,
        log_dir=log_dir,
    )


@vectors_app.command("extract")
@_plainly
def extract_vectors(
    model: Annotated[str, typer.Option(help="Subject, Hugging Face id, or path.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, .safetensors.")],
    corpus: Annotated[
        Path | None,
        typer.Option(help="JSON, concept -> list of texts. Default: the one that ships."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer. Default: the subject's steering layer.")
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrate", help="Find the vectors' strengths, too.")
    ] = False,
    grader: Annotated[
        str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
    ] = None,
    log_dir: Annotated[str | None, typer.Option(help="Where Inspect keeps the log.")] = None,
) -> None:
    """Take concept vectors: mean activation on a concept's texts minus that on the others'."""
    from esr_eval.vectors.run import run_extraction, run_vector_calibration

    args = _pairs(model_args, "-M")
    run_extraction(model, out, corpus=corpus, layer=layer, model_args=args)
    if calibrated:
        run_vector_calibration(
            model, out, model_args=args, grader=grader, task_args={}, log_dir=log_dir
        )


@vectors_app.command("calibrate")
@_plainly
def calibrate_vectors(
    file: Annotated[Path, typer.Argument(help="File made by `esr-eval vectors extract`.")],
    model: Annotated[str, typer.Option(help="The model that they were taken from.")],
    grader: Annotated[
        str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's.")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
    ] = None,
    task_args: Annotated[
        list[str] | None, typer.Option("-T", help="Task argument, e.g. -T check_samples=0.")
    ] = None,
    log_dir: Annotated[str | None, typer.Option(help="Where Inspect keeps the log.")] = None,
) -> None:
    """Find each vector's strength (first attempts score 30 of 100) and write it into the file."""
    from esr_eval.vectors.run import run_vector_calibration

    run_vector_calibration(
        model,
        file,
        model_args=_pairs(model_args, "-M"),
        grader=grader,
        task_args=_pairs(task_args, "-T"),
        log_dir=log_dir,
    )


@app.command()
@_plainly
def activations(
    log: Annotated[Path, typer.Argument(help="Log of the task activations.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the numbers to this file.")] = None,
) -> None:
    """Print activations by region of the answers: means, contrasts, latents by effect."""
    from esr_eval.analysis.region_tables import report_activations

    report_activations(str(log), csv)


def _pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """`name=value` arguments; values are read as JSON where they are JSON."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise EsrError(f"{option} {pair} is not of the form NAME=VALUE.")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
