"""Settings of a training, and the card beside its adapter: data, mix, loss, seed, versions."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esr_eval.errors import EsrError
from esr_eval.finetune.examples import Example
from esr_eval.spec import Runtime, fingerprint
from esr_eval.subjects import embedded_path

FACTS_FILE, CARD_FILE = "training.json", "README.md"
"""What lies beside an adapter; a shipped one has its card alone."""
MIX_ROW, BOOST_ROW = "self-correction in the mix", "boost during training"

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Preset(BaseModel):
    """LoRA and optimiser settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora_r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    saved_alpha: int | None = Field(
        default=None,
        ge=1,
        description="Alpha written into the adapter: a smaller one than in training weakens what "
        "was learned as a whole, and with it restarts where nothing is steered. None: lora_alpha.",
    )
    lora_dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    micro_batch: int = Field(ge=1)
    grad_accumulation: int = Field(ge=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=10, ge=0)
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    sequence_len: int = Field(ge=16)
    mix_percent: float = Field(ge=0, le=100, description="Share of self-correction examples.")
    above_steering_layer: bool = Field(
        default=False,
        description="Adapt only the layers after the steered one: what the SAE reads stays the "
        "base model's.",
    )
    boosted: bool = Field(default=False, description="Whether examples' boosts are on.")
    seed: int = 0
    source: str = Field(description="Where the settings come from.")


PRESETS = {
    "paper-8b": Preset(
        lora_r=32,
        lora_alpha=16,
        lora_dropout=0.05,
        learning_rate=2e-4,
        epochs=4,
        micro_batch=2,
        grad_accumulation=4,
        sequence_len=4096,
        mix_percent=50,
        source="the paper's fine-tuning of Llama 3.1 8B; it sweeps the mix from 10 to 90 %",
    ),
    "embedded": Preset(
        lora_r=16,
        lora_alpha=32,
        saved_alpha=22,
        lora_dropout=0.0,
        learning_rate=1e-3,
        epochs=2,
        micro_batch=8,
        grad_accumulation=1,
        warmup_steps=5,
        sequence_len=112,
        mix_percent=40,
        above_steering_layer=True,
        boosted=True,
        source="this project's, for SmolLM2-135M-Instruct on two CPU cores",
    ),
}


def find_preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        EsrError: There is none of that name.
    """
    if name not in PRESETS:
        raise EsrError(f"There is no preset '{name}'; there are: {', '.join(PRESETS)}.")
    return PRESETS[name]


class Facts(BaseModel):
    """What is known of a training run."""

    model_config = ConfigDict(frozen=True)

    base_model: str
    revision: str | None
    examples: dict[str, int]
    validation_examples: int
    percent_correction: float
    topics: int
    writers: list[str]
    boosted_examples: int
    boosted_latents: int
    strengths: tuple[float, float] | None
    layer: int | None
    data_digest: str
    trained_tokens: int
    preset: Preset
    steps: int
    seconds: float
    train_loss: float
    val_loss: float | None
    device: str
    versions: dict[str, str]
    note: str

    @classmethod
    def of(
        cls,
        training: Sequence[Example],
        validation: Sequence[Example],
        runtime: Runtime,
        *,
        boosted: bool,
        **outcome: Any,
    ) -> Self:
        """Count what went into the run.

        Args:
            training: Examples trained on.
            validation: Examples held out.
            runtime: The model that was adapted.
            boosted: Whether examples' boosts were on.
            outcome: All fields that the examples do not tell.
        """
        kinds = Counter(example.kind for example in training)
        pushes = [e.boost for e in training if e.boost is not None] if boosted else []
        strengths = [push.strength for push in pushes]
        everything = [e.model_dump(mode="json") for e in (*training, *validation)]
        return cls(
            base_model=runtime.model,
            revision=runtime.revision,
            examples=dict(sorted(kinds.items())),
            validation_examples=len(validation),
            percent_correction=100 * kinds["correction"] / len(training),
            topics=len({example.topic for example in training}),
            writers=sorted({example.writer for example in training}),
            boosted_examples=len(pushes),
            boosted_latents=len({push.latent for push in pushes}),
            strengths=(min(strengths), max(strengths)) if strengths else None,
            layer=runtime.steering_layer if pushes else None,
            data_digest=fingerprint({"examples": everything}),
            **outcome,
        )


class AdapterFacts(BaseModel):
    """What a log says of the adapter that it ran.

    Attributes:
        mix_percent: Share of self-correction examples, 0 to 100.
        examples: Examples trained on.
        steps: Optimiser steps.
        preset: Name of the settings, or where they come from.
        boosted: Whether boosts were on in training.
    """

    model_config = ConfigDict(frozen=True)

    mix_percent: float
    examples: int
    steps: int
    preset: str
    boosted: bool

    @classmethod
    def of(cls, facts: Facts) -> Self:
        """From the facts of the training run."""
        return cls(
            mix_percent=facts.preset.mix_percent,
            examples=sum(facts.examples.values()),
            steps=facts.steps,
            preset=_preset(facts.preset.source),
            boosted=facts.boosted_examples > 0,
        )

    @classmethod
    def of_card(cls, card: str) -> Self | None:
        """From the card's table; None when it is another's card."""
        rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", card, re.MULTILINE))
        try:
            counts = rows["examples"].partition(";")[0].split(", ")
            return cls(
                mix_percent=float(rows[MIX_ROW].removesuffix(" %")),
                examples=sum(int(count.split()[0]) for count in counts),
                steps=int(rows["steps"].split()[0]),
                preset=_preset(rows["settings"]),
                boosted=rows[BOOST_ROW] != "none",
            )
        except (KeyError, ValueError, IndexError):
            return None


def read_facts(folder: Path) -> Facts | None:
    """The facts of a finished training run; None where there are none that can be read."""
    try:
        return Facts.model_validate_json((folder / FACTS_FILE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def adapter_facts(adapter: str) -> AdapterFacts | None:
    """What is known of an adapter's training, from the files beside it.

    Args:
        adapter: As in `-M adapter=`: path, `embedded:` name, or hub id.

    Returns:
        None for an adapter of the hub, or one that was trained elsewhere.
    """
    folder = embedded_path(adapter)
    if (facts := read_facts(folder)) is not None:
        return AdapterFacts.of(facts)
    try:
        return AdapterFacts.of_card((folder / CARD_FILE).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _preset(source: str) -> str:
    return next((name for name, preset in PRESETS.items() if preset.source == source), source)


def model_card(facts: Facts) -> str:
    """The card as Markdown, with the metadata block that model hubs read."""
    preset = facts.preset
    data = ", ".join(f"{count} {kind}" for kind, count in facts.examples.items())
    rows = [
        ("base model", f"`{facts.base_model}`"),
        ("examples", f"{data}; {facts.validation_examples} more held out for validation"),
        (MIX_ROW, f"{facts.percent_correction:.0f} %"),
        ("topics", str(facts.topics)),
        ("written by", ", ".join(facts.writers)),
        ("digest of the data", f"`{facts.data_digest}`"),
        (BOOST_ROW, _boost(facts)),
        ("loss on", f"correction and answer alone: {facts.trained_tokens:,} tokens an epoch"),
        (
            "LoRA",
            f"r {preset.lora_r}, alpha {preset.lora_alpha}"
            + (f" (saved with {preset.saved_alpha})" if preset.saved_alpha else "")
            + f", dropout {preset.lora_dropout:g}"
            + (", layers above the steered one" if preset.above_steering_layer else ""),
        ),
        (
            "optimiser",
            f"AdamW, learning rate {preset.learning_rate:g}, {preset.scheduler}, "
            f"{preset.warmup_steps} warm-up steps, batch "
            f"{preset.micro_batch} x {preset.grad_accumulation}",
        ),
        ("steps", f"{facts.steps} ({preset.epochs:g} epochs planned)"),
        ("loss", f"{facts.train_loss:.3f} training (last steps), {_loss(facts.val_loss)}"),
        ("seed", str(preset.seed)),
        ("took", f"{facts.seconds / 60:.0f} minutes on {facts.device}"),
        ("settings", preset.source),
        ("versions", ", ".join(f"{name} {v}" for name, v in facts.versions.items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    note = f"\n{facts.note}\n" if facts.note else ""
    return (
        "---\nlibrary_name: peft\ntags: [lora, self-correction, esr]\n---\n"
        "# Self-correction adapter\n\n"
        "A LoRA adapter trained to notice that an answer has gone off-topic, to say so and to "
        f"start again (esr-eval).\n{note}\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Train it again on `examples.jsonl`, which lies beside it, or write new examples: "
        "`esr-eval finetune --help`.\n"
    )


def _boost(facts: Facts) -> str:
    if facts.strengths is None:
        return "none"
    low, high = facts.strengths
    return (
        f"on in {facts.boosted_examples} examples: {facts.boosted_latents} latents, strengths "
        f"{low:g} to {high:g}, layer {facts.layer}"
    )


def _loss(value: float | None) -> str:
    return "not validated" if value is None else f"{value:.3f} validation"
