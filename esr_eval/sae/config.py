"""The description of an SAE: enough to check a request before any weights are read."""

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from esr_eval.errors import EsrError
from esr_eval.model.weights import difference, name_of_model

logger = logging.getLogger(__name__)

CFG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "abstopk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "gated": ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec"),
    "matching_pursuit": ("W_dec", "b_dec"),
}
"""Tensors of the architectures whose activation at one position is a function of the residual
there, and whose decoder is linear."""
STACK = r"(?:(?:model|language_model|text_model|decoder|transformer|gpt_neox)\.)*(?:layers|h)\."
HOOKS = (
    # TransformerLens's names, old and new.
    (r"blocks\.(\d+)\.hook_(?:resid_post|out)", 0),
    (r"blocks\.(\d+)\.hook_(?:resid_pre|in)", 1),
    # transformers' modules: the language model's layers, not those of a vision tower.
    (rf"{STACK}(\d+)(?:\.output)?", 0),
    (rf"{STACK}(\d+)\.input", 1),
)
"""Names of the residual stream after a layer, and of the layers before which it is read."""
LONG = 1 << 20
"""More positions than any context has."""
SCALES = ("scaling_factor", "norm_scaling_factor", "activation_normalization_factor")
"""Keys under which configs keep a scale of the input that is not in the weights."""


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
        hook: Where it was trained, in the config's own words; None where they are missing.
        layer: Decoder layer whose output that is; None without a hook.
        model: The model it was trained on, when the config says so.
    """

    folder: Path
    architecture: str
    d_model: int
    n_latents: int
    normalisation: str
    subtract_b_dec: bool
    unit_decoder: bool
    hook: str | None
    layer: int | None
    model: str | None

    def check_width(self, d_model: int, model: str) -> None:
        """Raise an `EsrError` when the SAE does not fit the model's residual stream."""
        if self.d_model != d_model:
            raise EsrError(
                f"The SAE in {self.folder} was trained on a residual stream of width "
                f"{self.d_model}, but {model} has width {d_model}: name an SAE of this model with "
                "-M sae_release= -M sae_id=."
            )

    def check_layer(self, feature_layer: int | None) -> None:
        """Raise an `EsrError` when the SAE was trained on another layer, or on none that is known.

        Args:
            feature_layer: The layer it is to read, when somebody said so.
        """
        if self.layer is None:
            if feature_layer is None:
                raise EsrError(
                    f"The {CFG_FILE} in {self.folder} does not say where the SAE was trained (no "
                    "hook_name): if it was the output of a decoder layer, name that with "
                    "-M feature_layer=."
                )
            _warn_of_no_hook(self.folder, feature_layer)
        elif feature_layer is not None and self.layer != feature_layer:
            raise EsrError(
                f"The SAE in {self.folder} was trained on the output of layer {self.layer} "
                f"({self.hook}), not {feature_layer}: pass -M feature_layer={self.layer} (the "
                "layer that is edited is -M steering_layer=, and may differ)."
            )

    def check_model(self, model: str, subject: str) -> None:
        """Raise an `EsrError` when the SAE was trained on a model that this one is not made from.

        Args:
            model: Id or path of the model that is to run.
            subject: Its name in the message.
        """
        runs = name_of_model(model)
        if self.model and runs and (differs := difference(self.model, runs)):
            raise EsrError(
                f"The SAE in {self.folder} was trained on {self.model}, but {subject} is {runs} "
                f"(another {differs}): name an SAE of this model with -M sae_release= -M sae_id=, "
                "or, if you know that it fits, pass -M sae_model=any."
            )

    def check_latent(self, latent: int) -> None:
        """Raise an `EsrError` when the SAE has no such latent."""
        if not 0 <= latent < self.n_latents:
            raise EsrError(
                f"Latent {latent} is out of range: the SAE in {self.folder} has latents "
                f"0 to {self.n_latents - 1}."
            )


def parse_sae_config(raw: dict[str, Any], folder: Path) -> SAEConfig:
    """Check the content of a cfg.json.

    Args:
        raw: What it holds.
        folder: Where it was read; named in messages.

    Raises:
        EsrError: It is no SAE's, or of one this project cannot edit with.
    """
    try:
        hook, said = _hook_of(raw), _about(raw).get("model_name")
        layer = _hook_layer(hook, folder)
        _check_architecture(raw, hook, folder)
        cfg = _current_format(raw)
        config = SAEConfig(
            folder=folder,
            architecture=str(cfg["architecture"]),
            d_model=_positive(cfg, "d_in"),
            n_latents=_positive(cfg, "d_sae"),
            normalisation=str(cfg.get("normalize_activations") or "none"),
            subtract_b_dec=bool(cfg.get("apply_b_dec_to_input", True)),
            unit_decoder=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
            hook=hook,
            layer=layer,
            model=str(said) if said else None,
        )
        _check_input(raw, cfg, config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(folder, error) from error
    return config


def _positive(cfg: dict[str, Any], key: str) -> int:
    value = cfg[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is no positive whole number")
    return value


def _about(raw: dict[str, Any]) -> dict[str, Any]:
    """What a config says of its origin: in 'metadata' since sae-lens 6, at the top before."""
    inner = raw.get("metadata")
    return {**raw, **(inner if isinstance(inner, dict) else {})}


def _hook_of(raw: dict[str, Any]) -> str | None:
    about = _about(raw)
    for key in ("hook_name", "hook_point", "hf_hook_name"):
        if about.get(key):
            return str(about[key])
    return None


def _hook_layer(hook: str | None, folder: Path) -> int | None:
    """Decoder layer whose output a hook is, from the ways in use to name one.

    The input of a layer is the output of the layer before it; other places are refused.
    """
    for pattern, before in HOOKS if hook else ():
        if found := re.fullmatch(pattern, hook or ""):
            layer = int(found[1]) - before
            if layer < 0:
                raise EsrError(
                    f"The SAE in {folder} was trained on {hook}, the embedding, which is the "
                    "output of no decoder layer: it cannot steer or be read here."
                )
            return layer
    if hook is None:
        return None
    raise EsrError(
        f"The SAE in {folder} was trained on {hook}, which is not the residual stream between two "
        "decoder layers (blocks.N.hook_resid_post, blocks.N.hook_resid_pre, model.layers.N): it "
        "cannot steer or be read here."
    )


def _check_architecture(raw: dict[str, Any], hook: str | None, folder: Path) -> None:
    name, about = str(raw.get("architecture") or "standard"), _about(raw)
    where = f"The SAE in {folder} ({hook or 'without hook_name'})"
    if "transcoder" in name or any(about.get(key) for key in ("hook_name_out", "d_out")):
        raise EsrError(
            f"{where} is a transcoder or crosscoder ({name}): its decoder writes to another place "
            "than its encoder reads, so it cannot steer or be read here."
        )
    if name not in ARCHITECTURES:
        raise EsrError(
            f"{where} has the architecture '{name}', whose activations cannot be computed from the "
            f"residual at one position (supported: {', '.join(ARCHITECTURES)}; of a training "
            "checkpoint, save the inference form with sae-lens)."
        )
    activation = about.get("activation_fn") or about.get("activation_fn_str") or "relu"
    k = (about.get("activation_fn_kwargs") or {}).get("k")
    if activation != "relu" and (activation != "topk" or (k is None and raw.get("k") is None)):
        raise EsrError(f"{where} has the activation function '{activation}', which is unknown.")


def _check_input(raw: dict[str, Any], cfg: dict[str, Any], config: SAEConfig) -> None:
    """Refuse an SAE that was trained on something else than the residual as it is."""
    about, how = _about(raw), config.normalisation
    where = f"The SAE in {config.folder} ({config.hook or 'without hook_name'})"
    if how in ("expected_average_only_in", "covariance_whitening"):
        raise unfolded(config.folder, config.hook, f"normalize_activations '{how}'")
    if how not in NORMALISATIONS:
        raise EsrError(
            f"{where} has the input normalisation '{how}', which is not supported (supported: "
            f"{', '.join(NORMALISATIONS)})."
        )
    for key in SCALES:
        if about.get(key) not in (None, 1, False):
            raise unfolded(config.folder, config.hook, key)
    if about.get("finetuning_scaling_factor"):
        raise EsrError(
            f"{where} has a finetuning_scaling_factor, which sae-lens 6 no longer applies: use the "
            "SAE without it."
        )
    if cfg.get("reshape_activations") not in (None, "none"):
        raise EsrError(f"{where} is of single attention heads and cannot steer the residual.")
    if about.get("hook_head_index") is not None:
        raise EsrError(
            f"{where} is of attention head {about['hook_head_index']} and cannot steer the "
            "residual stream."
        )
    part = about.get("seqpos_slice")
    if part and len(range(LONG)[slice(*part)]) != LONG:
        raise EsrError(
            f"{where} was trained on a part of the positions only (seqpos_slice {part}): its "
            "activations at the others mean nothing, and it would be read at all of them."
        )
    if (about.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        raise EsrError(
            f"{where} was trained on a model with centred weights (center_writing_weights), whose "
            "residual stream is not that of the model as it is."
        )


def unfolded(folder: Path, hook: str | None, told_by: str) -> EsrError:
    """The error for an SAE whose input scale is not in its weights."""
    return EsrError(
        f"The SAE in {folder} ({hook or 'without hook_name'}) wants its input scaled ({told_by}), "
        "and the scale is not folded into its weights: fold it in with sae-lens "
        "(sae.fold_activation_norm_scaling_factor(...) or sae.fold_activation_whitening(...), then "
        "sae.save_model(FOLDER)) and name that folder."
    )


def unreadable(folder: Path, error: Exception) -> EsrError:
    """The error for a folder that is no SAE's."""
    return EsrError(
        f"{folder} is not an SAE folder that sae-lens can read ({error!r}); it needs "
        f"{CFG_FILE} and {WEIGHTS_FILE} as written by sae.save_model()."
    )


@cache
def _warn_of_no_hook(folder: Path, feature_layer: int) -> None:
    logger.warning(
        "The %s in %s does not say where the SAE was trained (no hook_name): -M feature_layer=%d "
        "is taken at its word.",
        CFG_FILE,
        folder,
        feature_layer,
    )


def _current_format(cfg: dict[str, Any]) -> dict[str, Any]:
    """Bring configs of sae-lens before 6.0 into today's form, with sae-lens's own code."""
    told = cfg.get("sae_lens_version") or (cfg.get("metadata") or {}).get("sae_lens_version")
    if told and int(str(told).split(".")[0]) >= 6:
        return cfg
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    return dict(handle_config_defaulting(cfg))
