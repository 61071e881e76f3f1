"""SAEs through sae-lens, of which only the rows that a spec names stay in memory.

Every SAE is read from a local folder in sae-lens's format: safetensors hands out single rows
without reading the rest. A release of sae-lens's registry is converted into such a folder once,
in the user's cache (`files.converted`).
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from esr_eval._util.files import folder_digest
from esr_eval.errors import EsrError
from esr_eval.sae.config import WEIGHTS_FILE, SAEConfig
from esr_eval.sae.encoder import EncodeFn, LatentEncoder, norm_scale, spread
from esr_eval.sae.files import converted, read_sae_config
from esr_eval.sae.rows import RowsFile
from esr_eval.spec import SAERef
from esr_eval.subjects import given_folder

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
        self._readable: set[int] = set()
        self._full: Any = None
        self._loading = threading.Lock()

    @property
    def digest(self) -> str:
        """Digest of the whole SAE's files, also where only rows of it are here."""
        return self._rows.origin.digest if self._rows else folder_digest(self.config.folder)

    def check_latent(self, latent: int) -> None:
        """Raise an `EsrError` when the SAE has no such latent, or its row is not here."""
        self._at(latent)

    def check_rows(self, latents: Sequence[int], *, steered: bool, read: bool) -> None:
        """Raise an `EsrError` when latents are not here, or their rows cannot be used.

        Args:
            latents: Which latents.
            steered: Whether they are boosted or clamped.
            read: Whether their activations are read, as a clamp does.
        """
        for latent in latents:
            self.check_latent(latent)
            if steered:
                self.decoder_row(latent)
        elementwise = self.config.architecture in ELEMENTWISE
        if read and elementwise and not self._readable.issuperset(latents):
            self.encoder(latents)
            self._readable.update(latents)

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
        """What one unit of the latent adds to the (normalised) residual, float32 (d_model,).

        Raises:
            EsrError: There is no such latent, or its row is not finite or zero: it cannot steer.
        """
        at = self._at(latent)
        if latent not in self._decoder:
            with self.open_weights() as weights:
                row: Tensor = weights.get_slice("W_dec")[at].float()
            self._check_finite("W_dec", row[None], [latent])
            if not row.any():
                raise EsrError(
                    f"Latent {latent} has a decoder row of zeros in {self.file}: boosting or "
                    "clamping it would change nothing; leave it out."
                )
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

        Raises:
            EsrError: There is no such latent, or its weights are not finite.
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

        self._check_finite("W_enc", w_enc.T, latents)
        self._check_finite("b_enc", b_enc[:, None], latents)
        self._check_finite("threshold", threshold[:, None], latents)
        self._check_finite("b_dec", b_dec[None])
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
        with self._loading:  # once, whoever asks first
            if self._full is None:
                self._full = self._loaded(device)
        return self._full

    def _loaded(self, device: torch.device | str) -> Any:
        from sae_lens import SAE

        full = SAE.load_from_disk(self.config.folder, device=str(device), dtype="float32")
        for name, values in full.named_parameters():
            by_latent = values.T if name == "W_enc" else values
            known = range(self.config.n_latents) if name != "b_dec" else None
            self._check_finite(name, by_latent.detach().reshape(len(by_latent), -1), known)
        return full

    def _check_finite(self, name: str, rows: Tensor, latents: Sequence[int] | None = None) -> None:
        """Raise an `EsrError` that names the first of the latents whose row is not finite.

        Args:
            name: The tensor the rows are of.
            rows: One row for each latent.
            latents: Whose rows they are; None: of all together.
        """
        # The sum of a row is finite only if each of its values is, short of an overflow.
        suspect = (~rows.sum(dim=-1).isfinite()).nonzero().flatten().tolist()
        for at in suspect:
            if not bool(rows[at].isfinite().all()):
                whose = "" if latents is None else f" of latent {latents[at]}"
                raise EsrError(
                    f"The values{whose} in {name} of {self.file} are not finite (NaN or infinite): "
                    "the file is damaged or was saved in too narrow a format; leave the latent out "
                    "or get the SAE anew."
                )

    @property
    def file(self) -> Path:
        """Where the weights lie."""
        return self._rows.file if self._rows else self.config.folder / WEIGHTS_FILE

    def open_weights(self) -> Any:
        """The weights' safetensors file, opened."""
        return safe_open(self.file, framework="pt")


def open_sae(ref: SAERef, rows: Path | None = None) -> SparseSAE:
    """Open an SAE: the embedded one, a local folder, or a release of sae-lens's registry.

    Args:
        ref: Which SAE.
        rows: A file with some of its rows (`rows.write_rows`), used in its place.

    Raises:
        EsrError: It cannot be found, downloaded or used.
    """
    if rows is not None:
        part = RowsFile.read(rows, ref)
        return SparseSAE(part.config, part)
    return SparseSAE(read_sae_config(given_folder(ref) or converted(ref)))
