"""`esr-eval latents`: which latents to boost."""

from pathlib import Path
from typing import Annotated

import typer

from esr_eval._util.terminal import tell
from esr_eval.cli.options import Grader, LogDir, ModelArgs, Subject
from esr_eval.cli.plainly import own_options, pairs, plainly
from esr_eval.data.arguments import A_SEED, AT_LEAST_ONE, FILE_TO_WRITE, PERCENT
from esr_eval.errors import EsrError

app = typer.Typer(help="Latents: choose which to boost.", no_args_is_help=True)


@app.command("select")
@plainly
@own_options("latents", "wanted", "factor", "min_concreteness", "rule", "seed")
def select_latents(
    subject: Subject,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="CSV to write, index_in_sae,label."), FILE_TO_WRITE
    ],
    latents: Annotated[
        str | None,
        typer.Option(help="Labels: CSV, or a Neuronpedia export. Default: the subject's own."),
    ] = None,
    wanted: Annotated[
        int | None, typer.Option(help="How many are needed. Default: all that pass."), AT_LEAST_ONE
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
    from esr_eval.cli.selection import run_selection

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
@plainly
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
    from esr_eval.sae.rows import write_rows
    from esr_eval.subjects import find_subject

    found = find_subject(subject)
    runtime = ModelArgs(sae_release=sae_release, sae_id=sae_id).runtime(found)
    if runtime.sae is None:
        raise EsrError(f"{found.name} has no SAE of its own: name one with --sae-release.")
    wanted = [latent.index for latent in load_latents(found, latents, runtime)]
    if detectors is not None:
        wanted += load_detectors(detectors, runtime).latents
    size = write_rows(runtime.sae, wanted, out, rounded)
    tell(f"{out}: rows of {len(set(wanted))} latents, {size / 2**20:.1f} MiB.")
