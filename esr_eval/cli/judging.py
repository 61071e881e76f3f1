"""`esr-eval judges`: judges on trial, on passages whose attempts are known."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esr_eval._util.output import Terminal, aside, note, tell
from esr_eval.cli.command import DryRun, JudgePrice, LogDir, Yes, command
from esr_eval.data.arguments import A_SEED, AT_LEAST_ONE, FILE_TO_READ, GRADERS, OWN_JUDGE
from esr_eval.errors import EsrError

if TYPE_CHECKING:
    from inspect_ai.model import Model

    from esr_eval.data.passages import Passage
    from esr_eval.report.judges import Trial

app = typer.Typer()

OFFLINE = ("esr-judge/offline", "esr-judge/lexical")
"""Who is tried where nobody is named."""
NOBODY = "mockllm/model"
"""Takes the model's place where none is asked."""
CHARACTERS = 3
"""Of a token, in an estimate that is to be too high rather than too low."""


@app.command()
@command
def judges(
    judges: Annotated[
        list[str] | None,
        typer.Argument(help="Judges, PROVIDER/MODEL. Default: the two offline ones."),
        GRADERS,
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only passages of this split: dev, fresh, held_out, own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="So many passages, drawn at random."), AT_LEAST_ONE
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw."), A_SEED] = 0,
    passages: Annotated[
        Path | None,
        typer.Option(help="Passages of your own, one JSON object a line."),
        FILE_TO_READ,
    ] = None,
    by_kind: Annotated[bool, typer.Option("--by-kind", help="Also by kind of passage.")] = False,
    model: Annotated[
        str | None, typer.Option(help=f"The model under test, esr/NAME, for {OWN_JUDGE}.")
    ] = None,
    judge_price: JudgePrice = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, by kind too.")] = False,
    log_dir: LogDir = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Try judges on passages with known attempts: what they find, invent, miss, score and cost.

    The phrase detector is tried beside them. What a hosted judge takes is told first.
    """
    from esr_eval.data.passages import choose_passages, read_passages

    wanted = judges or list(OFFLINE)
    chosen = choose_passages(read_passages(passages), split, limit, seed)
    if not dry_run:  # what it would take needs no key
        with aside(as_json):
            check_judges(wanted, model)
    if not _agreed(wanted, chosen, judge_price, dry_run, yes):
        return
    args = {
        "file": None if passages is None else str(passages),
        "split": split,
        "n": limit,
        "seed": seed,
    }
    with aside(as_json):
        trials, failures = try_judges(wanted, args, model, log_dir, judge_price, quiet=as_json)
    show(trials, chosen, by_kind=by_kind, as_json=as_json)
    if failures:
        raise EsrError(" ".join(failures))


def check_judges(names: Sequence[str], model: str | None) -> None:
    """Build every judge, before anything is spent.

    Raises:
        EsrError: One cannot be built, or is named twice.
    """
    from inspect_ai.model import get_model

    from esr_eval.provider.api import ESRModelAPI
    from esr_eval.scorers.grader import OTHER_JUDGES, judge_model

    if len(set(names)) < len(names):
        raise EsrError("Two of the judges are the same: name each once.")
    for name in names:
        if name != OWN_JUDGE:
            try:
                judge_model(name)
            except EsrError as error:
                said = error.message.replace(OTHER_JUDGES, "name another judge")
                raise EsrError(said) from error
        elif model is None:
            raise EsrError(
                f"{OWN_JUDGE} judges with the model under test, and there is none here: name it "
                "with --model esr/NAME."
            )
    if model is None:
        return
    if OWN_JUDGE not in names:
        raise EsrError(
            f"--model is for {OWN_JUDGE} alone, which is not among the judges: leave it out."
        )
    under_test = get_model(model, memoize=False)
    if not isinstance(under_test.api, ESRModelAPI):
        raise EsrError(f"{OWN_JUDGE} judges with esr/NAME, and --model {model} is none: name one.")
    under_test.api.preflight(edits_needed=False)


def try_judges(
    judges: "Sequence[str | Model]",
    args: dict[str, Any],
    model: str | None,
    log_dir: str | None,
    price: tuple[float, float] | None,
    *,
    quiet: bool,
) -> "tuple[list[Trial], list[str]]":
    """Ask each judge about every passage; a log for each.

    Args:
        judges: Judges, or their names.
        args: Arguments of the task `passages`.
        model: The model under test, for a judge that needs it.
        log_dir: Where Inspect keeps the logs.
        price: Dollars per million tokens read and written; None takes what is known.
        quiet: Whether Inspect shows nothing of the run.

    Returns:
        What each judge found, and a sentence for each that did not come to its end.
    """
    from inspect_ai import eval as inspect_eval

    from esr_eval.report.judges import trial_of
    from esr_eval.tasks.passages import passages

    trials, failures = [], []
    for judge in judges:
        (log,) = inspect_eval(
            passages,
            model=model or NOBODY,
            model_roles={"grader": judge},
            task_args={name: value for name, value in args.items() if value is not None},
            log_dir=log_dir,
            display="none" if quiet else None,
        )
        if log.status == "success":
            trials.append(trial_of(log, str(judge), price))
        else:
            why = f" ({log.error.message})" if log.error else ""
            failures.append(f"The trial of {judge} ended early{why}.")
    return trials, failures


def show(
    trials: "Sequence[Trial]", passages: "Sequence[Passage]", *, by_kind: bool, as_json: bool
) -> None:
    """Print what the judges found, the phrase detector below them.

    Args:
        trials: The judges'.
        passages: What they were asked about.
        by_kind: Whether by kind of passage, too.
        as_json: Whether as JSON.
    """
    from esr_eval.report.judges import (
        as_data,
        detector_trial,
        kind_table,
        restart_table,
        score_table,
    )

    every = [*trials, detector_trial(passages)]
    if as_json:
        tell(json.dumps(as_data(every), indent=1))
        return
    console = Terminal()
    tables = [restart_table(every), score_table(every), kind_table(every) if by_kind else None]
    for table in tables:
        if table is not None:
            console.print(table)


def _agreed(
    judges: Sequence[str],
    passages: "Sequence[Passage]",
    price: tuple[float, float] | None,
    dry_run: bool,
    yes: bool,
) -> bool:
    """Tell what hosted judges take, and ask where that is money."""
    from esr_eval.calibration.cost import VERDICT_READ, VERDICT_WRITTEN, price_of

    texts = sum(math.ceil(len(one.text) / CHARACTERS) for one in passages)
    read, written = VERDICT_READ * len(passages) + texts, VERDICT_WRITTEN * len(passages)
    costly = False
    for judge in judges:
        each = (0.0, 0.0) if price_of(judge) == (0.0, 0.0) else price or price_of(judge)
        dollars = None if each is None else (read * each[0] + written * each[1]) / 1e6
        if dollars == 0 and not dry_run:
            continue
        costly = costly or dollars != 0
        note(
            f"{judge}: {len(passages):,} verdicts, at most about {read:,} tokens read and "
            f"{written:,} written, "
            + ("at a price that is not known." if dollars is None else f"${dollars:.2f}.")
        )
    if dry_run:
        return False
    if costly and not yes and sys.stdin.isatty():
        typer.confirm("Begin?", abort=True, err=True)
    return True
