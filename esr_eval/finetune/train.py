"""LoRA training with peft and trl: any subject or model path, resumable, with a card beside it."""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError
from esr_eval.finetune.card import CARD_FILE, FACTS_FILE, MODULES, Facts, Preset, model_card
from esr_eval.finetune.examples import (
    IGNORED,
    Encoded,
    Example,
    TrainingBoost,
    encode,
    read_examples,
    write_examples,
)
from esr_eval.spec import Runtime

INSTALL = "pip install trl datasets"
PACKAGES = ("peft", "trl", "torch", "transformers")
SET_FILE = "examples.jsonl"
STATE_FILE = "trainer_state.json"
"""The trainer's own, in each checkpoint."""
PUSH_KEY = "esr_push"
"""Name under which a batch carries its pushes to the model, (batch, d_model)."""


def check_installed() -> None:
    """Raise an `EsrError` when peft or trl is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("peft", "trl") if find_spec(name) is None]
    if missing:
        raise EsrError(f"Training needs {' and '.join(missing)}: {INSTALL}")


def split(
    examples: Sequence[Example], val_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Hold a share of the examples out for validation, whole topics at a time.

    Topics, because one answer serves several examples of its topic.
    """
    topics = sorted({example.topic for example in examples})
    held = set(random.Random(f"val-{seed}").sample(topics, round(len(topics) * val_fraction)))  # noqa: S311
    return [e for e in examples if e.topic not in held], [e for e in examples if e.topic in held]


def planned_steps(examples: Sequence[Example], preset: Preset, max_steps: int = -1) -> int:
    """Optimiser steps that a training takes."""
    if max_steps >= 0:
        return max_steps
    training, _ = split(examples, preset.val_fraction, preset.seed)
    per_epoch = math.ceil(len(training) / (preset.micro_batch * preset.grad_accumulation))
    return math.ceil(preset.epochs * per_epoch)


def train(
    examples: Sequence[Example],
    runtime: Runtime,
    preset: Preset,
    folder: Path,
    *,
    device: str | None = None,
    resume: bool = False,
    max_steps: int = -1,
    note: str = "",
) -> Facts:
    """Train an adapter and write it with its card.

    Args:
        examples: The training set; see `examples.mix`.
        runtime: The model to adapt and, where examples are boosted, its SAE and layer.
        preset: Settings.
        folder: Where adapter, card, training set and checkpoints go.
        device: transformers device map; None picks one.
        resume: Go on from the folder's last checkpoint.
        max_steps: Stop after so many steps; -1 takes the preset's epochs.
        note: A sentence for the card.

    Returns:
        Everything that the card says.

    Raises:
        EsrError: A package is missing, the boosts cannot be made, or the folder is taken.
    """
    check_installed()
    from transformers import set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTTrainer

    from esr_eval.model.layout import decoder_layers_path, descend
    from esr_eval.model.loading import load_model, load_tokenizer
    from esr_eval.sae.sparse import open_sae

    checkpoint = _checkpoint(folder, resume, get_last_checkpoint)
    boosts = preset.boosted and any(example.boost is not None for example in examples)
    if boosts and (runtime.sae is None or runtime.steering_layer is None):
        raise EsrError(
            "The examples are boosted, but the model has no SAE and steering layer: name them, or "
            "take a preset without boosts."
        )
    if checkpoint is not None and read_examples(folder / SET_FILE) != list(examples):
        raise EsrError(f"{folder} was begun with other examples: go on with those, or anew.")
    write_examples(folder / SET_FILE, examples)
    training, validation = split(examples, preset.val_fraction, preset.seed)
    set_seed(preset.seed)
    model, tokenizer = load_model(runtime, device), load_tokenizer(runtime)
    layers = descend(model, decoder_layers_path(model))
    sae = open_sae(runtime.sae) if boosts and runtime.sae is not None else None
    collate = make_collator(
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        runtime,
        sae.decoder_row if sae is not None else None,
        int(model.config.get_text_config().hidden_size),
    )
    encoded = [encode(example, tokenizer, preset.sequence_len) for example in training]
    held = [encode(example, tokenizer, preset.sequence_len) for example in validation]
    trainer = SFTTrainer(
        model=model,
        args=_arguments(preset, folder, len(encoded), bool(held), max_steps),
        train_dataset=_dataset(encoded),
        eval_dataset=_dataset(held) if held else None,
        data_collator=collate,
        processing_class=tokenizer,
        peft_config=_lora(preset, runtime, len(layers)),
    )
    steered = runtime.steering_layer
    layer = layers[steered if steered is not None else len(layers) // 2]
    loss, seconds = math.nan, 0.0
    if not _restored(trainer, checkpoint, planned_steps(examples, preset, max_steps)):
        with boosted(trainer.model, layer, runtime.skip_first):
            result = trainer.train(resume_from_checkpoint=checkpoint)
        loss, seconds = float(result.training_loss), float(result.metrics["train_runtime"])
    facts = Facts.of(
        training,
        validation,
        runtime,
        boosted=boosts,
        trained_tokens=sum(label != IGNORED for one in encoded for label in one.labels),
        preset=preset,
        steps=int(trainer.state.global_step),
        seconds=seconds,
        train_loss=_last_loss(trainer.state.log_history, loss),
        val_loss=_validation(trainer.state.log_history),
        device=str(trainer.args.device),
        versions={name: version(name) for name in PACKAGES},
        note=note,
    )
    _save(trainer.model, runtime, folder, facts)
    return facts


def make_collator(
    pad: int, runtime: Runtime, direction: Callable[[int], Any] | None, d_model: int
) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """A collator that pads on the right and adds each example's push.

    Args:
        pad: Token id of the padding.
        runtime: Of the model that is trained.
        direction: A latent's decoder row, (d_model,); None when nothing is boosted.
        d_model: Width of the residual stream.
    """
    import torch

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        encoded = [Encoded(**row) for row in rows]
        width = max(len(one.input_ids) for one in encoded)
        ids = torch.full((len(rows), width), pad)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        pushes = torch.zeros(len(rows), d_model)
        for b, one in enumerate(encoded):
            length = len(one.input_ids)
            ids[b, :length] = torch.tensor(one.input_ids)
            labels[b, :length] = torch.tensor(one.labels)
            mask[b, :length] = 1
            if one.boost is not None and direction is not None:
                # The trainer's dataset holds it as a dict.
                push = TrainingBoost.model_validate(one.boost)
                pushes[b] = push.strength * direction(push.latent)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if direction is not None:
            batch[PUSH_KEY] = pushes
        return batch

    return collate


@contextmanager
def boosted(model: Any, layer: Any, skip_first: int) -> Iterator[None]:
    """Let a model take pushes with its inputs and add them to a layer's output.

    Args:
        model: The model that the trainer calls; `esr_push` is taken out of its arguments.
        layer: The decoder layer whose output is edited.
        skip_first: Leading positions left alone (rows are padded on the right).
    """
    current: dict[str, Any] = {}

    def take(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        current["push"] = kwargs.pop(PUSH_KEY, None)
        return args, kwargs

    def add(_module: Any, _args: Any, output: Any) -> Any:
        push = current.get("push")
        if push is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        change = push.to(hidden.device).unsqueeze(1).expand(-1, hidden.shape[1], -1).clone()
        change[:, :skip_first] = 0
        edited = (hidden.float() + change).to(hidden.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    hooks = [
        model.register_forward_pre_hook(take, with_kwargs=True),
        layer.register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _lora(preset: Preset, runtime: Runtime, n_layers: int) -> Any:
    from peft import LoraConfig

    first = 0
    if preset.above_steering_layer:
        if runtime.steering_layer is None:
            raise EsrError("Adapting only the layers above the steered one needs a steering layer.")
        first = runtime.steering_layer + 1
    return LoraConfig(
        r=preset.lora_r,
        lora_alpha=preset.lora_alpha,
        lora_dropout=preset.lora_dropout,
        target_modules=list(MODULES),
        layers_to_transform=list(range(first, n_layers)) if first else None,
        task_type="CAUSAL_LM",
    )


def _arguments(preset: Preset, folder: Path, count: int, validated: bool, max_steps: int) -> Any:
    from trl import SFTConfig

    per_epoch = -(-count // (preset.micro_batch * preset.grad_accumulation))
    return SFTConfig(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=preset.micro_batch,
        per_device_eval_batch_size=preset.micro_batch,
        gradient_accumulation_steps=preset.grad_accumulation,
        learning_rate=preset.learning_rate,
        lr_scheduler_type=preset.scheduler,
        warmup_steps=preset.warmup_steps,
        num_train_epochs=preset.epochs,
        max_steps=max_steps,
        logging_steps=min(5, per_epoch),
        logging_first_step=True,
        eval_strategy="epoch" if validated else "no",
        save_strategy="steps",
        save_steps=max(10, per_epoch // 2),
        save_total_limit=1,
        seed=preset.seed,
        report_to=[],
        max_length=preset.sequence_len,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
    )


def _restored(trainer: Any, checkpoint: str | None, steps: int) -> bool:
    """Load a checkpoint after which nothing is left to train: going on would add a step."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    if checkpoint is None:
        return False
    state = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE))
    if state.global_step < steps:
        return False
    weights = load_file(Path(checkpoint) / "adapter_model.safetensors")
    set_peft_model_state_dict(trainer.model, weights)
    trainer.state = state
    return True


def _dataset(encoded: Sequence[Encoded]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "input_ids": one.input_ids,
                "labels": one.labels,
                "boost": one.boost.model_dump() if one.boost else None,
            }
            for one in encoded
        ]
    )


def _checkpoint(folder: Path, resume: bool, last: Any) -> str | None:
    checkpoints = folder / "checkpoints"
    for partial in checkpoints.glob("checkpoint-*"):
        # Its state is written last: without it the checkpoint was cut short.
        if partial.is_dir() and not (partial / STATE_FILE).is_file():
            shutil.rmtree(partial)
    found: str | None = last(str(checkpoints)) if checkpoints.is_dir() else None
    if resume:
        if found is None:
            raise EsrError(f"{folder} holds no checkpoint to go on from: leave out --resume.")
        return found
    if found is not None or (folder / "adapter_config.json").is_file():
        raise EsrError(f"{folder} holds an adapter already: name another folder, or --resume.")
    return None


def _last_loss(history: Sequence[dict[str, Any]], mean: float) -> float:
    """Mean of the last logged losses: the mean over the whole run says little."""
    losses = [float(entry["loss"]) for entry in history if "loss" in entry][-3:]
    return sum(losses) / len(losses) if losses else mean


def _validation(history: Sequence[dict[str, Any]]) -> float | None:
    losses = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    return losses[-1] if losses else None


def _save(model: Any, runtime: Runtime, folder: Path, facts: Facts) -> None:
    """Write the adapter in half precision, naming the model by its own id."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    weights = get_peft_model_state_dict(model)
    half = {name: w.detach().to("cpu", torch.float16).contiguous() for name, w in weights.items()}
    write_whole(folder / "adapter_model.safetensors", save(half, metadata={"format": "pt"}))
    config = model.peft_config["default"]
    config.base_model_name_or_path = runtime.model
    config.inference_mode = True
    config.lora_alpha = facts.preset.saved_alpha or facts.preset.lora_alpha
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(folder)
    text = json.dumps(facts.model_dump(mode="json"), indent=1) + "\n"
    write_whole(folder / FACTS_FILE, text.encode())
    # Last: a folder with a card holds all the rest.
    write_whole(folder / CARD_FILE, model_card(facts).encode())
