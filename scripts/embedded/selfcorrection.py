"""Make the self-correcting subject from nothing: examples, training, shipping, evaluation.

    python selfcorrection.py --work WORK                  # examples and adapter, about 30 minutes
    python selfcorrection.py --work WORK --evaluate       # then base and tuned, side by side
    python selfcorrection.py --work WORK --ship FOLDER    # copy what a package ships

Every step keeps what it has made in WORK, so an interrupted run goes on. On two CPU cores: about
6 minutes for the answers, 20 for the training, 20 for the evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

SUBJECT = "smollm2-135m"
PRESET = "embedded"
SHIPPED = ("adapter_config.json", "adapter_model.safetensors", "README.md", "examples.jsonl")
N_LATENTS, TRIALS_PER_LATENT = 24, 4


def write_data(work: Path, seed: int) -> Path:
    """Let the subject answer, put examples together, check them, and keep the good ones."""
    from esr_eval.finetune.examples import Checker, write_examples
    from esr_eval.finetune.offline import OfflineSettings, make_examples, write_answers
    from esr_eval.subjects import find_subject

    answers = write_answers(
        find_subject(SUBJECT),
        OfflineSettings(seed=seed),
        work,
        device="cpu",
        progress=lambda done, of: print(f"{done} of {of} answers", flush=True),
    )
    examples, rejects = make_examples(answers, Checker(), seed)
    print(rejects.in_words(), flush=True)
    file = work / "examples.jsonl"
    write_examples(file, examples)
    return file


def train_adapter(examples: Path, folder: Path, seed: int) -> None:
    """Train on the preset's mix; goes on from a checkpoint, and does nothing when it is done."""
    from esr_eval.finetune.card import find_preset
    from esr_eval.finetune.examples import mix, read_examples
    from esr_eval.finetune.train import train
    from esr_eval.subjects import find_subject

    if (folder / "README.md").is_file():
        return
    preset = find_preset(PRESET).model_copy(update={"seed": seed})
    checkpoints = folder / "checkpoints"
    facts = train(
        mix(read_examples(examples), preset.mix_percent, seed=seed),
        find_subject(SUBJECT).runtime(),
        preset,
        folder,
        device="cpu",
        resume=checkpoints.is_dir() and any(checkpoints.iterdir()),
        note="No latent of the evaluation was boosted in training, nor any pointing its way.",
    )
    print(f"{facts.steps} steps, loss {facts.train_loss:.3f}", flush=True)


def evaluate(adapter: Path, logs: Path, seed: int) -> None:
    """Base and tuned model on the same trials, steered and unsteered; prints the summary."""
    from inspect_ai import eval as inspect_eval
    from rich.console import Console

    from esr_eval.logs.conditions import read_all_scored
    from esr_eval.report.summary import metric_table, pair_table

    drawn = {"n_latents": N_LATENTS, "trials_per_latent": TRIALS_PER_LATENT, "seed": seed}
    made = []
    source = ""
    for name in ("base", "tuned"):
        for steering in (True, False):
            arguments = {"device": "cpu"} | ({"adapter": str(adapter)} if name == "tuned" else {})
            trials = {"replay": source, "strength": "replay"} if name == "tuned" else drawn
            log = inspect_eval(
                "esr_eval/finetuned" if name == "tuned" else "esr_eval/esr",
                model=f"esr/{SUBJECT}",
                model_args=arguments,
                task_args={**trials, "steering": steering},
                log_dir=str(logs),
                display="plain",
            )[0]
            made.append(Path(log.location.removeprefix("file://")))
            source = source or str(made[-1])
    runs = read_all_scored(made, note=print)
    console = Console(width=160)
    console.print(metric_table(runs))
    pairs = pair_table(runs)
    if pairs is not None:
        console.print(pairs)


def ship(adapter: Path, target: Path) -> None:
    """Copy the files that a package ships; checkpoints and local paths stay behind."""
    target.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(adapter / name, target / name)
    config = json.loads((target / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"].startswith("package:"), config
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {size / 2**20:.1f} MiB")


def main() -> None:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--ship", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    adapter = given.work / "adapter"
    train_adapter(write_data(given.work, given.seed), adapter, given.seed)
    if given.evaluate:
        evaluate(adapter, given.work / "logs", given.seed)
    if given.ship is not None:
        ship(adapter, given.ship)


if __name__ == "__main__":
    main()
