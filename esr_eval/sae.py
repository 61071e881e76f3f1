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

from esr_eval.digests import folder_digest
from esr_eval.edits import EncodeFn, LatentEncoder, norm_scale, spread
from esr_eval.errors import EsrError
from esr_eval.sae_config import (
    WEIGHTS_FILE,
    SAEConfig,
    converted_folder,
    local_folder,
    read_sae_config,
)
from esr_eval.sae_rows import RowsFile
from esr_eval.spec import SAERef

ELEMENTWISE = frozenset({"standard", "jumprelu"})
"""Architectures whose activation of one latent needs that latent's encoder row alone."""


class SparseSAE:
    """Single rows of an SAE, and activations of single latents."""

    def __init__(self, config: SAEConfig, rows: RowsFile | None = None) -> None:
        """Open an SAE; weights are read row by row, later.

        Args:
            config: Of the folder that holds it whole, or of the SAE that the rows belong to.
            rows: A file with some of its rows, in the folder's place.
        """
        self.config = config
        self._rows = rows
        self._decoder: dict[int, Tensor] = {}
        self._columns: dict[int, Tensor] = {}
        self._full: Any = None

    @property
    def digest(self) -> str:
        """Digest of the whole SAE's files, also where only rows of it are here."""
        return self._rows.origin.digest if self._rows else folder_digest(self.config.folder)

    def check_latent(self, latent: int) -> None:
        """Raise an `EsrError` when the SAE has no such latent, or its row is not here."""
        self._at(latent)

    def check_whole(self) -> None:
        """Raise an `EsrError` when only rows of the SAE are here."""
        if self._rows is not None:
            raise EsrError(
                f"{self._rows.file} holds {len(self._rows.latents)} of {self.config.n_latents} "
                "latents, and this takes the whole SAE: leave -M sae_rows= out."
            )

    def _at(self, latent: int) -> int:
        """Where a latent's row stands in the weights' file."""
        self.config.check_latent(latent)
        return self._rows.at(latent) if self._rows else latent

    def decoder_row(self, latent: int) -> Tensor:
        """What one unit of the latent adds to the (normalised) residual, float32 (d_model,)."""
        at = self._at(latent)
        if latent not in self._decoder:
            with self.open_weights() as weights:
                row: Tensor = weights.get_slice("W_dec")[at].float()
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
        wanted = [self._at(latent) for latent in latents]
        if self.config.architecture not in ELEMENTWISE:
            return self._full_encoder(latents, device)
        with self.open_weights() as weights:
            # A column lies scattered over the whole file: each is read once, not for every batch.
            columns = weights.get_slice("W_enc")
            for i in wanted:
                if i not in self._columns:
                    self._columns[i] = columns[:, i].float()
            w_enc = torch.stack([self._columns[i] for i in wanted], dim=1).to(device)
            b_enc = weights.get_tensor("b_enc")[wanted].float().to(device)
            threshold = torch.zeros_like(b_enc)
            if self.config.architecture == "jumprelu":
                threshold = weights.get_tensor("threshold")[wanted].float().to(device)
            b_dec = weights.get_tensor("b_dec").float().to(device)

        centre = b_dec if self.config.subtract_b_dec else None
        return LatentEncoder(w_enc, b_enc, threshold, centre, self.config.normalisation)

    def whole_encoder(self, device: torch.device | str = "cpu") -> EncodeFn:
        """Activations of every latent; the first use loads the whole encoder, through sae-lens.

        Args:
            device: Where to compute.

        Returns:
            Function from residuals (..., d_model) to activations (..., d_sae).
        """

        def encode(x: Tensor) -> Tensor:
            activations: Tensor = self._whole(device).encode(x)
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
        self.check_whole()
        if self._full is None:
            from sae_lens import SAE

            self._full = SAE.load_from_disk(self.config.folder, device=str(device), dtype="float32")
        return self._full

    def open_weights(self) -> Any:
        """The weights' safetensors file, opened."""
        file = self._rows.file if self._rows else self.config.folder / WEIGHTS_FILE
        return safe_open(file, framework="pt")


def open_sae(ref: SAERef, rows: Path | None = None) -> SparseSAE:
    """Open an SAE: the embedded one, a local folder, or a release of sae-lens's registry.

    Args:
        ref: Which SAE.
        rows: A file with some of its rows (`sae_rows.write_rows`), used in its place.

    Raises:
        EsrError: It cannot be found, downloaded or used.
    """
    if rows is not None:
        part = RowsFile.read(rows, ref)
        return SparseSAE(part.config, part)
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
