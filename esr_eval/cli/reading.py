"""Commands that read stored logs: tables, the report."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval._util.output import note, tell
from esr_eval.cli.command import command
from esr_eval.cli.options import Csv
from esr_eval.data.arguments import AT_LEAST_ONE, FILE_TO_WRITE, FOLDER_TO_WRITE, SHARE

app = typer.Typer()


@app.command()
@command
def summary(
    logs: Annotated[list[Path], typer.Argument(help="Logs of the task esr, or folders of logs.")],
    csv: Csv = None,
) -> None:
    """Print the metrics of logs side by side, and paired differences where they share trials."""
    from esr_eval._util.output import Terminal, write_frame
    from esr_eval.logs.conditions import read_all_scored
    from esr_eval.report.summary import metric_table, pair_table, short_names, summary_frame
    from esr_eval.scorers.scores import scale_doubt

    runs = read_all_scored(logs, note)
    console = Terminal()
    console.print(metric_table(runs))
    pairs = pair_table(runs)
    if pairs is not None:
        console.print(pairs)
    for name, run in zip(short_names(runs), runs, strict=True):
        if doubt := scale_doubt(run.by_trial("first_score").values()):
            note(f"{name}: the judge {run.judge} may use another scale: {doubt}.")
    if csv is not None:
        write_frame(csv, summary_frame(runs))


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
) -> None:
    """Print activations by region of the answers: means, contrasts, latents by effect."""
    from esr_eval._util.output import Terminal, write_frame
    from esr_eval.episodes.regions import latent_effects, region_statistics
    from esr_eval.episodes.traces import read_traces
    from esr_eval.logs.reading import read_only
    from esr_eval.report.activations import (
        contrast_table,
        latent_table,
        region_frame,
        region_table,
        set_title,
    )

    found = read_only(log, read_traces, note)
    statistics = region_statistics(found.traces)
    effects = {
        name: latent_effects(found.traces, one.latents, name) for name, one in found.sets.items()
    }
    console = Terminal()
    console.print(region_table(found, statistics))
    console.print(contrast_table(found, statistics))
    for name, ranked in effects.items():
        if any(one.d is not None for one in ranked):
            console.print(latent_table(ranked, set_title(found, name)))
    if csv is not None:
        write_frame(csv, region_frame(statistics, effects))


@app.command()
@command
def agreement(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of cross_judge, or scored several times; folders.")
    ],
    csv: Csv = None,
) -> None:
    """Print how far judges of the same responses agree, pair by pair."""
    from esr_eval._util.output import Terminal, write_frame
    from esr_eval.report.agreement import agreement_frame, agreements_of, judge_table, pair_table

    reports = agreements_of(logs, note)
    console = Terminal()
    for report in reports:
        console.print(judge_table(report))
        console.print(pair_table(report))
    if csv is not None:
        write_frame(csv, agreement_frame(reports))
