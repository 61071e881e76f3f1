"""Commands that read stored logs: tables, the report, what changed, how many trials it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from esr_eval._util.output import note, tell
from esr_eval.cli.command import (
    Csv,
    Json,
    command,
)
from esr_eval.data.arguments import (
    A_FEW,
    AT_LEAST_ONE,
    FILE_TO_WRITE,
    FOLDER_TO_WRITE,
    PERCENT,
    POINTS,
    POSITIVE,
    PROBABILITY,
    SHARE,
)
from esr_eval.errors import EsrError

app = typer.Typer()
MAIN = "multi_attempt"


@app.command()
@command
def summary(
    logs: Annotated[list[Path], typer.Argument(help="Logs with scores, or folders of logs.")],
    every: Annotated[
        bool, typer.Option("--all", help="All numbers, and what differs between all runs.")
    ] = False,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Print the rates of logs side by side, and paired differences where they share trials.

    Injected thoughts and protective steering have tables of their own below.
    """
    import pandas as pd

    from esr_eval._util.output import Terminal, tell_frame, write_frame
    from esr_eval.report.recovery import recoveries, recovery_table
    from esr_eval.report.reliability import reliability_of, reliability_table, with_reliability
    from esr_eval.report.summary import (
        MOST_PAIRS,
        headline_table,
        metric_table,
        pair_table,
        read_summarised,
        short_names,
        summary_frame,
    )
    from esr_eval.scorers.scores import scale_doubt

    runs, others = read_summarised(logs, note, every)
    names = short_names(runs)
    by_path = {run.log.path: (name, run.log) for name, run in zip(names, runs, strict=True)}
    again = [one for path, named in by_path.items() for one in reliability_of(*named, path)]
    if csv is not None or json:
        frames = [summary_frame(runs)] if runs else []
        frames += [frame for _, frame in others]
        frame = with_reliability(pd.concat(frames, ignore_index=True), again)
        if csv is not None:
            write_frame(csv, frame)
        if json:
            tell_frame(frame)
            return
    console = Terminal()
    if runs:
        console.print(metric_table(runs) if every else headline_table(runs))
    pairs = pair_table(runs)
    if pairs is not None and not every and len(pairs.rows) > MOST_PAIRS:
        console.print(f"{len(pairs.rows)} pairs of runs share trials: --all tells how they differ.")
    elif pairs is not None:
        console.print(pairs)
    if again and every:
        console.print(reliability_table(again))
    recovered = recovery_table(recoveries(runs))
    if recovered is not None:
        console.print(recovered)
    for table, _ in others:
        console.print(table)
    for name, run in zip(names, runs, strict=True):
        if doubt := scale_doubt(run.by_trial("first_score").values()):
            note(f"{name}: the judge {run.judge} may use another scale: {doubt}.")


@app.command()
@command
def report(
    logs: Annotated[list[Path], typer.Argument(help="Logs of any task, or folders of logs.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder of the page and its tables."),
        FOLDER_TO_WRITE,
    ] = Path("report"),
) -> None:
    """Make one HTML page and CSV tables of logs: what was asked, and what came out."""
    from esr_eval.report.page import write_report

    page = write_report(logs, output, note=note)
    tell(f"The report: {page}")


@app.command()
@command
def detectors(
    log: Annotated[Path, typer.Argument(help="Log of the task detectors, or its folder.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the detector file here."),
        FILE_TO_WRITE,
    ] = None,
    rule: Annotated[str, typer.Option(help="Which to print: silent or separability.")] = "silent",
    min_mismatched: Annotated[
        float, typer.Option(help="silent: least share of mismatched pairs it is active on."), SHARE
    ] = 0.8,
    max_matched: Annotated[
        float, typer.Option(help="silent: greatest share of matched pairs it is active on."), SHARE
    ] = 0.0,
    top: Annotated[
        int, typer.Option(help="separability: how many of greatest AUC."), AT_LEAST_ONE
    ] = 25,
) -> None:
    """Find off-topic detectors in a discovery log; the file holds the sets of both rules."""
    from esr_eval._util.output import Terminal
    from esr_eval.detectors.discovery import check_rule, find_detectors, write_detector_file
    from esr_eval.report.detectors import detector_table

    wanted = check_rule(rule)
    report = find_detectors(log, min_mismatched, max_matched, top, note)
    Terminal().print(detector_table(report, wanted))
    if output is not None:
        write_detector_file(report, output)
        tell(f"Both sets are in {output}: pass it as -T detectors={output}.")


@app.command()
@command
def activations(
    log: Annotated[Path, typer.Argument(help="Log of the task activations, or its folder.")],
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Print activations by region of the answers: means, contrasts, latents by effect."""
    from esr_eval._util.output import Terminal, tell_frame, write_frame
    from esr_eval.episodes.regions import latent_effects, region_statistics
    from esr_eval.episodes.traces import read_traces
    from esr_eval.logs.reading import read_only
    from esr_eval.report.activations import (
        contrast_table,
        latent_table,
        region_frame,
        region_table,
        set_title,
        what_is_tracked,
    )

    found = read_only(log, read_traces, note)
    statistics = region_statistics(found.traces)
    effects = {
        name: latent_effects(found.traces, one.latents, name) for name, one in found.sets.items()
    }
    if csv is not None:
        write_frame(csv, region_frame(statistics, effects))
    if json:
        tell_frame(region_frame(statistics, effects))
        return
    console = Terminal()
    console.print(region_table(found, statistics))
    console.print(contrast_table(found, statistics))
    if tracked := what_is_tracked(statistics):
        console.print(tracked, highlight=False)
    for name, ranked in effects.items():
        if any(one.d is not None for one in ranked):
            console.print(latent_table(ranked, set_title(found, name)))


@app.command()
@command
def agreement(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of cross_judge, or scored several times; folders.")
    ],
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Print how far judges of the same responses agree, pair by pair."""
    from esr_eval._util.output import Terminal, tell_frame, write_frame
    from esr_eval.report.agreement import agreement_frame, agreements_of, judge_table, pair_table

    reports = agreements_of(logs, note)
    if csv is not None:
        write_frame(csv, agreement_frame(reports))
    if json:
        tell_frame(agreement_frame(reports))
        return
    console = Terminal()
    for report in reports:
        console.print(judge_table(report))
        console.print(pair_table(report))


@app.command()
@command
def compare(
    base: Annotated[Path, typer.Argument(help="The stored log, or a folder of logs.")],
    new: Annotated[Path, typer.Argument(help="The new log, or a folder of logs.")],
    level: Annotated[
        float,
        typer.Option(help="Of the intervals; false alarms are at most 1 - level."),
        PROBABILITY,
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
    from esr_eval._util.output import Terminal
    from esr_eval.report.regression import change_table, compare_logs, read_logs, read_metrics

    metrics, completed = read_metrics(worse or [], margin or [])
    found = compare_logs(
        read_logs(base, note),
        read_logs(new, note),
        metrics=metrics,
        level=level,
        completed_margin=completed,
        allow_differences=allow_differences,
        same_trials=same_trials,
    )
    Terminal().print(change_table(found, metrics, level))
    for text in found.notes:
        note(f"Note: {text}")
    for problem in found.problems:
        tell(f"REGRESSION: {problem}")
    if found.regressed:
        raise typer.Exit(1)


@app.command()
@command
def power(
    base: Annotated[
        float, typer.Option(help="Rate without the change, in percent."), PERCENT
    ] = 7.4,
    reduced: Annotated[float, typer.Option(help="Rate with it, in percent."), PERCENT] = 5.5,
    icc: Annotated[
        float | None,
        typer.Option(help="Correlation of two trials of one latent. Default: 0.1, or the log's."),
        SHARE,
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(
            help="Take the clustering from this log or folder; twice: from it and its replay."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Whose clustering: multi_attempt, esr; with --scores recovered_score, first_score."
        ),
    ] = None,
    trials_per_latent: Annotated[int, typer.Option(help="In each condition."), A_FEW] = 10,
    paired: Annotated[
        bool, typer.Option("--paired/--unpaired", help="Same trials replayed, or other latents.")
    ] = True,
    latent_correlation: Annotated[
        float | None,
        typer.Option(
            help="How alike both conditions rank the latents. Default: 0.8, or the logs'."
        ),
        SHARE,
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Paired scores, such as recovered ones, not rates.")
    ] = False,
    sd: Annotated[
        float | None,
        typer.Option(help="Scores: standard deviation of a pair's difference. Or --log twice."),
        POSITIVE,
    ] = None,
    latents: Annotated[
        int | None, typer.Option(help="Scores: a number of latents to tell it for."), A_FEW
    ] = None,
    difference: Annotated[
        float | None, typer.Option(help="Scores: points that are to be seen."), POINTS
    ] = None,
    wanted: Annotated[
        float, typer.Option("--power", help="Chance to see the change."), PROBABILITY
    ] = 0.8,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided test."), PROBABILITY] = 0.05,
) -> None:
    """Tell how many trials and latents it takes to see a rate fall, or paired scores differ."""
    from esr_eval._util.output import Terminal
    from esr_eval.stats.power import ASSUMED_ICC, PairedScores

    if scores:
        from esr_eval.report.recovery import spread_of_logs, visible_table
        from esr_eval.scorers.continuation import RECOVERED

        if not paired or latent_correlation is not None:
            raise EsrError("--scores compares pairs: leave out --unpaired, --latent-correlation.")
        spread = spread_of_logs(log or [], metric or RECOVERED, note)
        if (sd is None) == (spread is None):
            raise EsrError(
                "--scores takes how the differences of pairs spread: --sd POINTS, or --log twice."
            )
        own = spread or PairedScores(sd or 0.0, ASSUMED_ICC)
        pairs = replace(
            own,
            icc=own.icc if icc is None else icc,
            trials_per_latent=trials_per_latent,
        )
        Terminal().print(visible_table(pairs, latents, difference, wanted, alpha))
        return
    if unfit := [
        name
        for name, value in (("--sd", sd), ("--latents", latents), ("--difference", difference))
        if value is not None
    ]:
        raise EsrError(f"{', '.join(unfit)} is for paired scores: add --scores.")
    metric = metric or MAIN
    from esr_eval.report.summary import clustering_of_logs, power_table
    from esr_eval.stats.power import ASSUMED_LATENT_CORRELATION, Design

    if reduced > base:
        raise EsrError(f"--reduced {reduced:g} lies above --base {base:g}: a fall is looked for.")
    if metric != MAIN and not log:
        raise EsrError("--metric says whose clustering is taken from a log: pass it with --log.")
    found = clustering_of_logs(log or [], metric, note)
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
    console = Terminal()
    console.print(power_table(designs, wanted, alpha))
    for name, value in found.items():
        console.print(
            f"{name.replace('_', ' ')} of the log{'s' if len(log or []) > 1 else ''}: {value:.3f}"
        )
