"""`esr-eval finetune`: examples, one adapter, a sweep over mixes, tables of what came out."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esr_eval._util.output import note, tell
from esr_eval.cli.command import (
    Csv,
    DryRun,
    Grader,
    Json,
    JudgePrice,
    MaxTokens,
    ModelArgs,
    Subject,
    TokensPerSecond,
    Yes,
    command,
    own_options,
    pairs,
)
from esr_eval.cli.running import agreed
from esr_eval.data.arguments import (
    A_FEW,
    AT_LEAST_ONE,
    DEVICE,
    FILE_TO_READ,
    FOLDER_TO_WRITE,
    GRADER,
    NOT_NEGATIVE,
    PERCENT,
    POSITIVE,
    STEPS,
    TRAINING_SEED,
)
from esr_eval.errors import EsrError

if TYPE_CHECKING:
    from esr_eval.finetune.card import Preset
    from esr_eval.logs.reading import Note
    from esr_eval.subjects import Subject as Found

app = typer.Typer(
    help="Self-correction training: write examples, train adapters on mixes of them.",
    no_args_is_help=True,
)


@app.command()
@command
def data(
    folder: Annotated[
        Path, typer.Argument(help="Where examples.jsonl and the journal go."), FOLDER_TO_WRITE
    ],
    writer: Annotated[
        str,
        typer.Option(help="`offline`, or any Inspect model, e.g. anthropic/claude-haiku-4-5."),
        GRADER,
    ] = "offline",
    subject: Annotated[
        str, typer.Option(help="Offline: whose own answers, steered and unsteered, are taken.")
    ] = "smollm2-135m",
    corrections: Annotated[
        int,
        typer.Option(help="Self-correction examples to try for; some are refused."),
        AT_LEAST_ONE,
    ] = 420,
    plain: Annotated[
        int, typer.Option(help="Normal answers, with a hosted writer."), NOT_NEGATIVE
    ] = 400,
    concurrency: Annotated[
        int, typer.Option(help="Requests to a hosted writer at a time."), AT_LEAST_ONE
    ] = 10,
    seed: Annotated[
        int, typer.Option(help="Seed of tasks, subjects, latents and samplers."), TRAINING_SEED
    ] = 0,
    device: Annotated[
        str | None, typer.Option(help="Offline: transformers device map."), DEVICE
    ] = None,
) -> None:
    """Write self-correction examples and normal answers, and check each of them.

    Interrupted, the same command goes on where it stopped.
    """
    from esr_eval.finetune.examples import Checker, write_examples

    def progress(done: int, of: int) -> None:
        tell(f"{done} of {of} answers", err=True)

    if writer == "offline":
        from esr_eval.finetune.offline import OfflineSettings, make_examples, write_answers
        from esr_eval.subjects import find_subject

        settings = OfflineSettings(steered=corrections, seed=seed)
        answers = write_answers(
            find_subject(subject), settings, folder, device=device, progress=progress
        )
        examples, rejects = make_examples(answers, Checker(), seed)
    else:
        import anyio

        from esr_eval.finetune.hosted import orders, write_hosted

        examples, rejects = anyio.run(
            functools.partial(
                write_hosted,
                writer,
                orders(corrections, plain, seed),
                folder,
                checker=Checker(),
                concurrency=concurrency,
                progress=progress,
            )
        )
    if not examples:
        raise EsrError(f"Not one example can be used: {rejects.in_words()}.")
    write_examples(folder / "examples.jsonl", examples)
    tell(f"{folder / 'examples.jsonl'}: {rejects.in_words()}.")


@app.command()
@command
def train(
    examples: Annotated[
        Path, typer.Argument(help="Examples, from `esr-eval finetune data`."), FILE_TO_READ
    ],
    folder: Annotated[
        Path, typer.Argument(help="Where the adapter and its card go."), FOLDER_TO_WRITE
    ],
    subject: Annotated[
        str, typer.Option(help="Subject, Hugging Face id, or path of the model to adapt.")
    ] = "smollm2-135m",
    preset: Annotated[
        str | None, typer.Option(help="`embedded` or `paper-8b`. Default: the subject's.")
    ] = None,
    percent: Annotated[
        float | None, typer.Option("--mix", help="Percent self-correction, 0 to 100."), PERCENT
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Size of the training set."), AT_LEAST_ONE
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Override the preset's."), POSITIVE] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Override the preset's."), POSITIVE
    ] = None,
    boost: Annotated[
        bool | None, typer.Option("--boost/--no-boost", help="Boosts on during training.")
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Stop early; -1 for all epochs."), STEPS] = -1,
    seed: Annotated[
        int, typer.Option(help="Seed of the mix and of the training."), TRAINING_SEED
    ] = 0,
    device: Annotated[str | None, typer.Option(help="transformers device map."), DEVICE] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a checkpoint.")] = False,
    note: Annotated[str, typer.Option(help="A sentence for the card.")] = "",
) -> None:
    """Train a LoRA adapter; use it with `-M adapter=FOLDER`."""
    from esr_eval.finetune.examples import mix, read_examples
    from esr_eval.finetune.train import train as run
    from esr_eval.subjects import find_subject

    found = find_subject(subject)
    chosen = _preset(preset, found)
    changes = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "mix_percent": percent,
        "boosted": boost,
        "seed": seed,
    }
    chosen = chosen.model_validate(
        chosen.model_dump() | {k: v for k, v in changes.items() if v is not None}
    )
    drawn = mix(read_examples(examples), chosen.mix_percent, count, seed)
    facts = run(
        drawn,
        found.runtime(),
        chosen,
        folder,
        device=device,
        resume=resume,
        max_steps=max_steps,
        note=note,
    )
    tell(
        f"{folder}: {facts.steps} steps, loss {facts.train_loss:.3f}. "
        f"Evaluate it: inspect eval esr_eval/esr --model esr/{subject} -M adapter={folder}"
    )


@app.command()
@command
@own_options("latents", "n_latents", "seed")
def sweep(
    subject: Subject,
    examples: Annotated[
        Path, typer.Argument(help="Examples, from `esr-eval finetune data`."), FILE_TO_READ
    ],
    folder: Annotated[
        Path, typer.Argument(help="Where adapters (mix-30) and logs go."), FOLDER_TO_WRITE
    ],
    mixes: Annotated[
        str, typer.Option(help="Percent self-correction of each adapter.")
    ] = "10,30,50,70,90",
    preset: Annotated[
        str | None, typer.Option(help="`embedded` or `paper-8b`. Default: the subject's.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Examples in each mix. Default: what all of them allow."),
        AT_LEAST_ONE,
    ] = None,
    latents: Annotated[str | None, typer.Option(help="File of labelled latents.")] = None,
    n_latents: Annotated[
        int, typer.Option(help="How many of them are boosted."), AT_LEAST_ONE
    ] = 12,
    trials: Annotated[int, typer.Option(help="Trials for each, boost on, and off."), A_FEW] = 4,
    until_token: Annotated[
        int | None,
        typer.Option(help="Also with the boost ended after so many tokens."),
        AT_LEAST_ONE,
    ] = None,
    holistic: Annotated[bool, typer.Option(help="Also score the second view.")] = True,
    grader: Grader = None,
    model_args: ModelArgs = None,
    seed: Annotated[
        int, typer.Option(help="Seed of mixes, training, latents and tasks."), TRAINING_SEED
    ] = 0,
    max_steps: Annotated[
        int, typer.Option(help="End each training early; -1: all epochs."), STEPS
    ] = -1,
    max_tokens: MaxTokens = None,
    tokens_per_second: TokensPerSecond = None,
    judge_price: JudgePrice = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Train, calibrate and evaluate an adapter for each mix, all on the base's trials.

    The estimate comes first, a table of restarts and of their cost last. Interrupted, the same
    command goes on where it stopped; with further --mixes and the same --count it adds them.
    """
    from esr_eval._util.output import Terminal
    from esr_eval.finetune.examples import read_examples
    from esr_eval.paper.sweep import Sizes, all_steps, plan, read_mixes, run, training_lines
    from esr_eval.subjects import find_subject

    found = find_subject(subject)
    percents = read_mixes(mixes)
    sizes = Sizes(
        latents=latents,
        n_latents=n_latents,
        trials=trials,
        until_token=until_token,
        seed=seed,
        holistic=holistic,
        max_steps=max_steps,
        max_tokens=max_tokens,
    )
    planned = plan(
        found,
        read_examples(examples),
        percents,
        _preset(preset, found),
        folder,
        sizes,
        count=count,
        model_args=pairs(model_args, "-M"),
        grader=grader,
    )
    base, console = planned.eval_set(), Terminal()
    if not agreed(
        base,
        all_steps(planned),
        console,
        title=f"Mixes of {found.name}, judged by {base.judge} (at most; training comes on top)",
        notes=[f"Training {line}" for line in training_lines(planned)],
        speed=tokens_per_second,
        price=judge_price,
        dry_run=dry_run,
        yes=yes,
    ):
        return
    run(planned, console.rule)
    # Calibrations lie there, too, and have no place in the tables.
    _print_tables([planned.logs], None, lambda text: None)
    console.print(f"The report: esr-eval report {planned.logs}", soft_wrap=True)


@app.command()
@command
def table(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of a base and its tuned subjects, or folders.")
    ],
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Print restarts under the boost, and what training costs where nobody steers."""
    _print_tables(logs, csv, note, json=json)


def _print_tables(logs: list[Path], csv: Path | None, note: "Note", *, json: bool = False) -> None:
    """Tell what tuned subjects do under the boost, and what their training costs."""
    from esr_eval._util.output import Terminal, tell_frame, write_frame
    from esr_eval.logs.conditions import conditions_of
    from esr_eval.logs.stored import read_logs
    from esr_eval.report.finetuning import (
        boosted_table,
        cost_table,
        finetuning_frame,
        finetuning_of,
    )

    found = finetuning_of(conditions_of(read_logs(logs, note)))
    if found is None:
        raise EsrError(
            "None of these logs is of a fine-tuned subject: run esr_eval/finetuned with "
            "-M adapter=PATH, or `esr-eval finetune sweep`."
        )
    if csv is not None:
        write_frame(csv, finetuning_frame(found))
    if json:
        tell_frame(finetuning_frame(found))
        return
    console = Terminal()
    console.print(boosted_table(found))
    console.print(cost_table(found))


def _preset(name: str | None, subject: "Found") -> "Preset":
    from esr_eval.finetune.card import find_preset

    embedded = subject.model.startswith("package:")
    return find_preset(name or ("embedded" if embedded else "paper-8b"))
