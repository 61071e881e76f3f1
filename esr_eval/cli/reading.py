"""Commands that read stored logs: tables, the report."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval._util.terminal import note, tell
from esr_eval.cli.options import Csv
from esr_eval.cli.plainly import plainly
from esr_eval.data.arguments import AT_LEAST_ONE, FILE_TO_WRITE, FOLDER_TO_WRITE, SHARE

app = typer.Typer()


@app.command()
@plainly
def summary(
    logs: Annotated[list[Path], typer.Argument(help="Logs of the task esr, or folders of logs.")],
    csv: Csv = None,
) -> None:
    """Print the metrics of logs side by side, and paired differences where they share trials."""
    from esr_eval._util.terminal import Terminal
    from esr_eval.logs.runs import read_runs
    from esr_eval.report.summary import metric_table, pair_table, short_names, write_csv
    from esr_eval.scorers.scale import scale_doubt

    runs = read_runs(logs, note)
    console = Terminal()
    console.print(metric_table(runs))
    pairs = pair_table(runs)
    if pairs is not None:
        console.print(pairs)
    for name, run in zip(short_names(runs), runs, strict=True):
        if doubt := scale_doubt(run.first_scores.values()):
            note(f"{name}: the judge {run.judge} may use another scale: {doubt}.")
    if csv is not None:
        write_csv(csv, runs)


@app.command()
@plainly
def report(
    logs: Annotated[list[Path], typer.Argument(help="Logs of any task, or folders of logs.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder of the page and its tables."),
        FOLDER_TO_WRITE,
    ] = Path("report"),
) -> None:
    """Make one HTML page and CSV tables of logs: what was asked, and what came out."""
    from esr_eval.report import write_report

    page = write_report(logs, output, note=note)
    tell(f"The report: {page}")


@app.command()
@plainly
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
    from esr_eval._util.terminal import Terminal
    from esr_eval.detectors.discovery import find_detectors
    from esr_eval.detectors.report import check_rule, write_detector_file
    from esr_eval.report.detector_table import detector_table

    wanted = check_rule(rule)
    report = find_detectors(log, min_mismatched, max_matched, top, note)
    Terminal().print(detector_table(report, wanted))
    if output is not None:
        write_detector_file(report, output)
        tell(f"Both sets are in {output}: pass it as -T detectors={output}.")


@app.command()
@plainly
def activations(
    log: Annotated[Path, typer.Argument(help="Log of the task activations, or its folder.")],
    csv: Csv = None,
) -> None:
    """Print activations by region of the answers: means, contrasts, latents by effect."""
    from esr_eval.report.region_tables import report_activations

    report_activations(log, csv, note)


@app.command()
@plainly
def agreement(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of cross_judge, or scored several times; folders.")
    ],
    csv: Csv = None,
) -> None:
    """Print how far judges of the same responses agree, pair by pair."""
    from esr_eval._util.terminal import Terminal
    from esr_eval.report.agreement import agreements_of, write_csv
    from esr_eval.report.agreement_table import judge_table, pair_table

    reports = agreements_of(logs, note)
    console = Terminal()
    for report in reports:
        console.print(judge_table(report))
        console.print(pair_table(report))
    if csv is not None:
        write_csv(csv, reports)
