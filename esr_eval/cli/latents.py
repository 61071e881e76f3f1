"""`esr-eval latents`: which latents to boost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esr_eval._util.output import Terminal, tell
from esr_eval.cli.command import (
    Grader,
    LogDir,
    ModelArgs,
    Subject,
    command,
    own_options,
    pairs,
)
from esr_eval.data.arguments import A_SEED, AT_LEAST_ONE, FILE_TO_WRITE, PERCENT
from esr_eval.errors import EsrError
from esr_eval.subjects import find_subject

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from rich.table import Table

    from esr_eval.dataset import Latent
    from esr_eval.selection.rules import Funnel

app = typer.Typer(help="Latents: choose which to boost.", no_args_is_help=True)


@app.command("fetch")
@command
def fetch(
    subject: Subject,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="CSV to write them to as well."),
        FILE_TO_WRITE,
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask for every batch again, for newer labels.")
    ] = False,
    model_args: ModelArgs = None,
) -> None:
    """Fetch the published labels of a subject's SAE, or another's (-M sae_release= -M sae_id=).

    They go into the cache, where every task and command finds them, or fetches them by itself.

    Interrupted, the same command goes on. ESR_EVAL_LABELS_URL names a mirror of the bucket.
    """
    from esr_eval.data.labels import read_labels, write_labels
    from esr_eval.data.neuronpedia import fetch_labels
    from esr_eval.provider.arguments import ModelArgs as Arguments

    found = find_subject(subject)
    runtime = Arguments.parse(pairs(model_args, "-M")).runtime(found)
    fetched = fetch_labels(found, runtime, fresh=fresh)
    tell(fetched.line())
    for one in fetched.origin.notes:
        tell(f"  {one}")
    path = fetched.path
    if out is not None:
        write_labels(out, read_labels(path, runtime).by_index.items())
        path = out
    tell(path)


@app.command("select")
@command
@own_options("latents", "wanted", "factor", "min_concreteness", "rule", "seed")
def select(
    subject: Subject,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="CSV to write, index_in_sae,label."), FILE_TO_WRITE
    ],
    latents: Annotated[
        str | None,
        typer.Option(help="Labels: CSV, or a Neuronpedia export. Default: the subject's own."),
    ] = None,
    wanted: Annotated[
        int | None,
        typer.Option(help="How many are needed. Default: all that pass; 20 of a whole SAE."),
        AT_LEAST_ONE,
    ] = None,
    factor: Annotated[
        float, typer.Option(help="Candidates drawn for each one wanted."), AT_LEAST_ONE
    ] = 3,
    min_concreteness: Annotated[
        float, typer.Option(help="Lowest concreteness of a label, 0-100 by the judge."), PERCENT
    ] = 65,
    rule: Annotated[
        str, typer.Option(help="zero: silent on all task prompts; top100: never among the top 100.")
    ] = "zero",
    seed: Annotated[int, typer.Option(help="Seed of the draw of candidates."), A_SEED] = 0,
    grader: Grader = None,
    model_args: ModelArgs = None,
    log_dir: LogDir = None,
) -> None:
    """Choose latents to boost: concrete labels, and irrelevant to the tasks.

    Interrupted, the same command asks the judge only for what it has not rated yet.
    """
    task_args = {"latents": latents, "wanted": wanted, "factor": factor, "rule": rule}
    run_selection(
        subject,
        out,
        task_args={**task_args, "min_concreteness": min_concreteness, "seed": seed},
        model_args=pairs(model_args, "-M"),
        grader=grader,
        log_dir=log_dir,
    )


@app.command("rows")
@command
@own_options("latents", "detectors")
def write_latent_rows(
    subject: Subject,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="safetensors file to write."), FILE_TO_WRITE
    ],
    latents: Annotated[
        str | None,
        typer.Option(help="CSV of latents, or a Neuronpedia export. Default: the subject's own."),
    ] = None,
    detectors: Annotated[
        str | None, typer.Option(help="Detector set to ablate, too: a name or a JSON file.")
    ] = None,
    rounded: Annotated[
        bool, typer.Option("--bfloat16", help="Round rows to bfloat16: half the bytes.")
    ] = False,
    sae_release: Annotated[str | None, typer.Option(help="Another SAE than the subject's.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Its id in the release.")] = None,
) -> None:
    """Write the SAE rows of some latents into a small file, for machines without the SAE.

    Evaluate with it: `-M sae_rows=FILE`. 64 KB a latent at d_model 8,192 in float32.
    """
    from esr_eval.dataset import load_latents
    from esr_eval.detectors.choice import load_detectors
    from esr_eval.provider.arguments import ModelArgs
    from esr_eval.sae.sparse import write_rows

    found = find_subject(subject)
    runtime = ModelArgs(sae_release=sae_release, sae_id=sae_id).runtime(found)
    if runtime.sae is None:
        raise EsrError(f"{found.name} has no SAE of its own: name one with --sae-release.")
    wanted = [latent.index for latent in load_latents(found, latents, runtime)]
    if detectors is not None:
        wanted += load_detectors(detectors, runtime).latents
    size = write_rows(runtime.sae, wanted, out, rounded)
    tell(f"{out}: rows of {len(set(wanted))} latents, {size / 2**20:.1f} MiB.")


def run_selection(
    subject: str,
    out: Path,
    *,
    task_args: dict[str, Any],
    model_args: dict[str, Any],
    grader: str | None,
    log_dir: str | None,
) -> "EvalLog":
    """Select a subject's latents.

    Args:
        subject: A subject's name, Hugging Face id or path.
        out: CSV to write, index_in_sae,label.
        task_args: Arguments of the task `select_latents`.
        model_args: Arguments of the provider. Without `skip_first` at least the first position
            is left out: at the begin-of-text token thousands of latents fire and mean nothing.
        grader: Judge; None takes the subject's.
        log_dir: Where Inspect keeps the log.

    Raises:
        EsrError: The run did not end well, no latent is kept, or the file cannot be written.
    """
    from inspect_ai import eval as inspect_eval

    from esr_eval.data.labels import write_labels
    from esr_eval.tasks.select_latents import select_latents

    name = subject.removeprefix("esr/")
    (log,) = inspect_eval(
        select_latents,
        model=f"esr/{name}",
        model_args={"skip_first": max(1, find_subject(name).skip_first), **model_args},
        model_roles={"grader": grader} if grader else None,
        task_args={key: value for key, value in task_args.items() if value is not None},
        log_dir=log_dir,
    )
    if log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The selection ended early{why}. The same command asks the judge only for what it "
            "has not rated yet."
        )
    funnel, kept = read_selection(log)
    console = Terminal()
    console.print(funnel_table(funnel, log))
    if not kept:
        raise EsrError("No latent is kept: no file was written.")
    if funnel.wanted is not None and len(kept) < funnel.wanted:
        console.print(
            f"{len(kept)} of the {funnel.wanted} wanted: raise --factor for more candidates."
        )
    write_labels(out, ((latent.index, latent.label) for latent in kept))
    console.print(f"{len(kept)} latents written to {out}; every candidate's reason: {log.location}")
    return log


def read_selection(log: "EvalLog") -> "tuple[Funnel, list[Latent]]":
    """The funnel of a log of `select_latents`, and the latents it keeps, by index.

    Where more pass than are wanted, the first in the order of the random draw are taken.
    """
    from esr_eval.dataset import Latent
    from esr_eval.selection.rules import Finding, check_rule, funnel_of
    from esr_eval.selection.survey import FINDING

    metadata = log.eval.metadata or {}
    rule, least = check_rule(metadata["rule"]), float(metadata["min_concreteness"])
    wanted: int | None = metadata["wanted"]
    samples = {sample.id: sample for sample in log.samples or [] if sample.epoch == 1}
    # In the log samples stand as they ended; the dataset knows the order of the draw.
    drawn = [samples[name] for name in log.eval.dataset.sample_ids or list(samples)]
    findings = [Finding.model_validate(sample.store[FINDING]) for sample in drawn]
    kept = [
        Latent(index=sample.metadata["latent"], label=sample.metadata["label"])
        for sample, finding in zip(drawn, findings, strict=True)
        if finding.rejection(rule, least) is None
    ]
    labelled = int(metadata["labelled"])
    funnel = funnel_of(findings, rule, least, labelled=labelled, wanted=wanted)
    return funnel, sorted(kept[:wanted], key=lambda latent: latent.index)


def funnel_table(funnel: "Funnel", log: "EvalLog") -> "Table":
    """How many latents each step rejects and leaves."""
    from rich.table import Table

    metadata = log.eval.metadata or {}
    table = Table(
        title=f"Latents of {metadata['subject']} (judge {metadata['judge']}, concreteness "
        f"{metadata['min_concreteness']:g} or more, rule {metadata['rule']})"
    )
    table.add_column("step")
    table.add_column("rejected", justify="right")
    table.add_column("left", justify="right")
    for step, rejected, left in funnel.rows():
        table.add_row(step, str(rejected) if rejected else "", str(left))
    return table
