"""Settings of training: the paper's for the 8B model, and the embedded subject's."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from esr_eval.errors import EsrError

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
