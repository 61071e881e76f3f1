"""SAEs through sae-lens, of which only the rows that a spec names stay in memory.

Every SAE is read from a local folder in sae-lens's format: safetensors hands out single rows
without reading the rest. A release of sae-lens's registry is converted into such a folder once,
in the user's cache.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from esr_eval.edits import EncodeFn, LatentEncoder, norm_scale, spread
from esr_eval.errors import EsrError
from esr_eval.sae_config import (
    WEIGHTS_FILE,
    SAEConfig,
    converted_folder,
    local_folder,
    read_sae_config,
)
from esr_eval.spec import SAERef

ELEMENTWISE = frozenset({"standard", "jumprelu"})
"""Architectures whose activation of one latent needs that latent's encoder row alone."""


class SparseSAE:
    """Single rows of an SAE, and activations of single latents."""

    def __init__(self, config: SAEConfig) -> None:
        """Open a folder; weights are read row by row, later."""
        self.config = config
        self._decoder: dict[int, Tensor] = {}
        self._full: Any = None

    def decoder_row(self, latent: int) -> Tensor:
        """What one unit of the latent adds to the (normalised) residual, float32 (d_model,)."""
        self.config.check_latent(latent)
        if latent not in self._decoder:
            with self._open() as weights:
                row: Tensor = weights.get_slice("W_dec")[latent].float()
            self._decoder[latent] = row / row.norm() if self.config.unit_decoder else row
        return self._decoder[latent]

    def encoder(self, latents: Sequence[int], device: torch.device | str = "cpu") -> EncodeFn:
        """Activations of the given latents, as a function of the residual.

        Element-wise architectures read only their rows; any other (top-k), where a latent's
        activation depends on all the others, is loaded whole through sae-lens.

        Args:
            latents: Which latents, in the order of the result's last axis.
            device: Where to compute.

        Returns:
            Function from residuals (..., d_model) to activations (..., len(latents)).
        """
        for latent in latents:
            self.config.check_latent(latent)
        if self.config.architecture not in ELEMENTWISE:
            return self._full_encoder(latents, device)
        with self._open() as weights:
            columns = weights.get_slice("W_enc")
            w_enc = torch.stack([columns[:, i].float() for i in latents], dim=1).to(device)
            wanted = list(latents)
            b_enc = weights.get_tensor("b_enc")[wanted].float().to(device)
            threshold = torch.zeros_like(b_enc)
            if self.config.architecture == "jumprelu":
                threshold = weights.get_tensor("threshold")[wanted].float().to(device)
            b_dec = weights.get_tensor("b_dec").float().to(device)

        centre = b_dec if self.config.subtract_b_dec else None
        return LatentEncoder(w_enc, b_enc, threshold, centre, self.config.normalisation)

    def whole_encoder(self, device: torch.device | str = "cpu") -> EncodeFn:
        """Activations of every latent; loads the whole encoder once, through sae-lens.

        Args:
            device: Where to compute.

        Returns:
            Function from residuals (..., d_model) to activations (..., d_sae).
        """
        sae = self._whole(device)

        def encode(x: Tensor) -> Tensor:
            activations: Tensor = sae.encode(x)
            return activations

        return encode

    @property
    def output_scale(self) -> EncodeFn | None:
        """c(x) that undoes the input normalisation, (..., 1); None where it is 1 everywhere."""
        return {"constant_norm_rescale": norm_scale, "layer_norm": spread}.get(
            self.config.normalisation
        )

    def _full_encoder(self, latents: Sequence[int], device: torch.device | str) -> EncodeFn:
        sae, index = self._whole(device), torch.tensor(list(latents), device=device)
        return lambda x: sae.encode(x)[..., index]

    def _whole(self, device: torch.device | str) -> Any:
        if self._full is None:
            from sae_lens import SAE

            self._full = SAE.load_from_disk(self.config.folder, device=str(device), dtype="float32")
        return self._full

    def _open(self) -> Any:
        return safe_open(self.config.folder / WEIGHTS_FILE, framework="pt")


def open_sae(ref: SAERef) -> SparseSAE:
    """Open an SAE: the embedded one, a local folder, or a release of sae-lens's registry.

    Raises:
        EsrError: It cannot be found, downloaded or used.
    """
    return SparseSAE(read_sae_config(local_folder(ref) or _registry_folder(ref)))


def _registry_folder(ref: SAERef) -> Path:
    """Download a registry SAE through sae-lens and keep a converted copy in the cache."""
    if ref.sae_id is None:
        raise EsrError(
            f"'{ref.release}' is no SAE folder on this machine; if it is a sae-lens release, "
            "name its SAE with -M sae_id=."
        )
    from sae_lens import SAE

    folder = converted_folder(ref)
    try:
        sae = SAE.from_pretrained(ref.release, ref.sae_id, device="cpu", dtype="float32")
    except Exception as error:  # sae-lens, the hub and the network raise types of their own
        raise EsrError(
            f"The SAE {ref.release} / {ref.sae_id} could not be loaded through sae-lens "
            f"({type(error).__name__}: {error}); check the release and id against sae-lens's "
            "table of pretrained SAEs, and the network, or pass a local folder as -M sae_release=."
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    for parameter in sae.parameters():
        parameter.data = parameter.data.contiguous()  # safetensors refuses strided views
    try:
        sae.save_model(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
