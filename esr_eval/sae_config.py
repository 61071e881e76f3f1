"""The description of an SAE folder: enough to check a request before any weights are read."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esr_eval.cache import cache_root
from esr_eval.errors import EsrError
from esr_eval.spec import SAERef, fingerprint
from esr_eval.subjects import embedded_path

CFG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
NORMALISATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
"""sae-lens leaves the input alone under 'expected_average_only_in' once that is folded in."""


@dataclass(frozen=True)
class SAEConfig:
    """What cfg.json says.

    Attributes:
        folder: Where it was read.
        architecture: sae-lens's name of the architecture, e.g. jumprelu.
        d_model: Width of the residual stream it was trained on.
        n_latents: Number of latents.
        normalisation: What is done to the input first.
        subtract_b_dec: Whether the decoder bias is subtracted from the input.
        unit_decoder: Whether decoder rows count as if they had norm 1.
        layer: Decoder layer whose output it was trained on, when the config says so.
    """

    folder: Path
    architecture: str
    d_model: int
    n_latents: int
    normalisation: str
    subtract_b_dec: bool
    unit_decoder: bool
    layer: int | None

    def check_width(self, d_model: int, model: str) -> None:
        """Raise an `EsrError` when the SAE does not fit the model's residual stream."""
        if self.d_model != d_model:
            raise EsrError(
                f"The SAE in {self.folder} was trained on a residual stream of width "
                f"{self.d_model}, but {model} has width {d_model}: name an SAE of this model with "
                "-M sae_release= -M sae_id=."
            )

    def check_layer(self, feature_layer: int) -> None:
        """Raise an `EsrError` when the SAE is known to have been trained on another layer."""
        if self.layer is not None and self.layer != feature_layer:
            raise EsrError(
                f"The SAE in {self.folder} was trained on the output of layer {self.layer}, not "
                f"{feature_layer}: pass -M feature_layer={self.layer} (the layer that is edited "
                "is -M steering_layer=, and may differ)."
            )

    def check_latent(self, latent: int) -> None:
        """Raise an `EsrError` when the SAE has no such latent."""
        if not 0 <= latent < self.n_latents:
            raise EsrError(
                f"Latent {latent} is out of range: the SAE in {self.folder} has latents "
                f"0 to {self.n_latents - 1}."
            )


def read_sae_config(folder: Path) -> SAEConfig:
    """Read and check a folder's cfg.json.

    Raises:
        EsrError: It is no SAE folder, or one this project cannot edit with.
    """
    try:
        cfg = json.loads((folder / CFG_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return parse_sae_config(cfg, folder)


def parse_sae_config(raw: dict[str, Any], folder: Path) -> SAEConfig:
    """Check the content of a cfg.json.

    Args:
        raw: What it holds.
        folder: Where it was read; named in messages.

    Raises:
        EsrError: It is no SAE's, or of one this project cannot edit with.
    """
    try:
        cfg = _current_format(raw)
        config = SAEConfig(
            folder=folder,
            architecture=str(cfg["architecture"]),
            d_model=int(cfg["d_in"]),
            n_latents=int(cfg["d_sae"]),
            normalisation=str(cfg.get("normalize_activations", "none")),
            subtract_b_dec=bool(cfg.get("apply_b_dec_to_input", True)),
            unit_decoder=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
            layer=_hook_layer((cfg.get("metadata") or {}).get("hook_name")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error
    if config.normalisation not in NORMALISATIONS:
        raise EsrError(
            f"{folder}: input normalisation '{config.normalisation}' is not supported; fold it "
            f"into the weights with sae-lens first (supported: {', '.join(NORMALISATIONS)})."
        )
    if cfg.get("reshape_activations", "none") != "none":
        raise EsrError(f"{folder}: an SAE on attention heads (hook_z) cannot steer the residual.")
    return config


def _unreadable(folder: Path, error: Exception) -> EsrError:
    return EsrError(
        f"{folder} is not an SAE folder that sae-lens can read ({error!r}); it needs "
        f"{CFG_FILE} and {WEIGHTS_FILE} as written by sae.save_model()."
    )


def local_folder(ref: SAERef) -> Path | None:
    """The folder of an SAE that is on this machine already; None when it must be downloaded."""
    folder = embedded_path(ref.release)
    if ref.sae_id is not None and (folder / ref.sae_id).is_dir():
        folder = folder / ref.sae_id
    if folder.is_dir():
        return folder
    converted = converted_folder(ref)
    complete = (converted / WEIGHTS_FILE).is_file() and (converted / CFG_FILE).is_file()
    return converted if complete else None


def converted_folder(ref: SAERef) -> Path:
    """Where the cache keeps a registry SAE in sae-lens's folder format."""
    return cache_root() / "sae" / fingerprint(ref)


def _current_format(cfg: dict[str, Any]) -> dict[str, Any]:
    """Bring configs of sae-lens before 6.0 into today's form, with sae-lens's own code."""
    told = cfg.get("sae_lens_version") or (cfg.get("metadata") or {}).get("sae_lens_version")
    if told and int(str(told).split(".")[0]) >= 6:
        return cfg
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    return dict(handle_config_defaulting(cfg))


def _hook_layer(hook_name: str | None) -> int | None:
    """Decoder layer whose output the SAE saw, from either naming of hooks in use.

    TransformerLens's `hook_resid_pre` of a layer is the output of the layer before it;
    transformers' `model.layers.N` is the layer itself.
    """
    name = hook_name or ""
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", name):
        return int(found[1]) - (found[2] == "pre")
    if found := re.search(r"(?:^|\.)layers\.(\d+)$", name):
        return int(found[1])
    return None
