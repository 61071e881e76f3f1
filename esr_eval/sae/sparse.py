"""SAEs through sae-lens, of which only the rows that a spec names stay in memory.

Every SAE is read from a local folder in sae-lens's format: safetensors hands out single rows
without reading the rest. A release of sae-lens's registry is converted into such a folder once,
in the user's cache (`files.converted`).
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from esr_eval._util.files import folder_digest, write_whole
from esr_eval.errors import EsrError
from esr_eval.sae.config import CFG_FILE, WEIGHTS_FILE, SAEConfig
from esr_eval.sae.encoder import EncodeFn, LatentEncoder, norm_scale, spread
from esr_eval.sae.files import (
    ABOUT,
    LATENTS,
    RowsFile,
    RowsOrigin,
    converted,
    read_sae_config,
)
from esr_eval.spec import SAERef
from esr_eval.subjects import given_folder

ELEMENTWISE = frozenset({"standard", "jumprelu"})
"""Architectures whose activation of one latent needs that latent's encoder row alone."""
BLOCK, POSITIONS = 2048, 256
"""Latents and positions that are computed at once where an SAE is gone through as a whole."""


@dataclass(frozen=True)
class Fit:
    """How well an SAE describes the residual stream after a layer.

    Attributes:
        layer: The layer, which may be another one than the SAE was trained on.
        explained_variance: 1 less the squared error over the variance around the mean.
        l0: Mean number of active latents.
        median_norm: Median L2 norm of the residuals.
        tokens: Over how many.
    """

    layer: int
    explained_variance: float
    l0: float
    median_norm: float
    tokens: int


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
            w_enc = torch.stack([self._columns[i] for i in wanted], dim=1)
            return self._latent_encoder(weights, w_enc, wanted, latents).to(device)

    def _latent_encoder(
        self, weights: Any, w_enc: Tensor, at: Sequence[int], latents: Sequence[int]
    ) -> LatentEncoder:
        """From the latents' columns and where their other numbers stand in the file."""
        b_enc = weights.get_tensor("b_enc")[list(at)].float()
        threshold = torch.zeros_like(b_enc)
        if self.config.architecture == "jumprelu":
            threshold = weights.get_tensor("threshold")[list(at)].float()
        b_dec = weights.get_tensor("b_dec").float()
        self._check_finite("W_enc", w_enc.T, latents)
        self._check_finite("b_enc", b_enc[:, None], latents)
        self._check_finite("threshold", threshold[:, None], latents)
        self._check_finite("b_dec", b_dec[None])
        centre = b_dec if self.config.subtract_b_dec else None
        return LatentEncoder(w_enc, b_enc, threshold, centre, self.config.normalisation)

    def fit(self, x: Tensor, layer: int) -> Fit:
        """How well the SAE describes residuals.

        Args:
            x: Residuals, float32 (position, d_model), on the device to compute on.
            layer: After which layer they were found.

        Raises:
            EsrError: Only rows of the SAE are here, its weights are not finite, or the residuals
                do not vary.
        """
        self.check_whole()
        made, active = self._reconstructed(x)
        # On the CPU, as not every device has float64.
        parts = [torch.split(whole, POSITIONS) for whole in (x, made)]
        mean = torch.stack([some.cpu().double().sum(0) for some in parts[0]]).sum(0) / len(x)
        error = variance = 0.0
        for some, again in zip(*parts, strict=True):
            error += float((some - again).cpu().double().square().sum())
            variance += float((some.cpu().double() - mean).square().sum())
        if not variance:
            raise EsrError("An SAE's fit is measured over more than one token.")
        return Fit(
            layer=layer,
            explained_variance=1 - error / variance,
            l0=float(active.cpu().double().mean()),
            median_norm=float(x.norm(dim=-1).median()),
            tokens=len(x),
        )

    def _reconstructed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """d(f(x)), and how many latents are active, for residuals (position, d_model).

        Takes a tensor of x's size and a few blocks of latents: at d_model 8,192 some 230 MB,
        whatever the SAE's size. An SAE whose latents depend on each other is loaded whole.
        """
        made = torch.zeros_like(x)
        active = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        parts = list(
            zip(*(torch.split(whole, POSITIONS) for whole in (x, made, active)), strict=True)
        )
        if self.config.architecture not in ELEMENTWISE:
            sae = self._whole(x.device)
            for residuals, out, count in parts:
                activations = sae.encode(residuals)
                count += (activations != 0).sum(-1)
                out += sae.decode(activations)
            return made, active
        with self.open_weights() as weights:
            columns, rows = weights.get_slice("W_enc"), weights.get_slice("W_dec")
            for first in range(0, self.config.n_latents, BLOCK):
                block = range(first, min(first + BLOCK, self.config.n_latents))
                w_enc = columns[:, block.start : block.stop].float()
                encode = self._latent_encoder(weights, w_enc, block, block).to(x.device)
                w_dec = rows[block.start : block.stop].float().to(x.device)
                self._check_finite("W_dec", w_dec, block)
                if self.config.unit_decoder:
                    w_dec = torch.nn.functional.normalize(w_dec, dim=-1)
                for residuals, out, count in parts:
                    activations = encode(residuals)
                    count += (activations != 0).sum(-1)
                    out.addmm_(activations, w_dec)
            b_dec = weights.get_tensor("b_dec").float().to(x.device)
        scale = self.output_scale
        for residuals, out, _ in parts:
            out += b_dec
            if scale is not None:
                out *= scale(residuals)
            if self.config.normalisation == "layer_norm":
                out += residuals.mean(dim=-1, keepdim=True)
        return made, active

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
        rows: A file with some of its rows (`write_rows`), used in its place.

    Raises:
        EsrError: It cannot be found, downloaded or used.
    """
    if rows is not None:
        part = RowsFile.read(rows, ref)
        return SparseSAE(part.config, part)
    return SparseSAE(read_sae_config(given_folder(ref) or converted(ref)))


def write_rows(ref: SAERef, latents: Sequence[int], file: Path, rounded: bool = False) -> int:
    """Write the rows of some latents into one safetensors file.

    Args:
        ref: The SAE; downloaded through sae-lens if it is not on this machine.
        latents: Which latents.
        file: Where to write.
        rounded: Round encoder and decoder rows to bfloat16 (by up to 0.4 % each), as the precision
            of the models they steer: half the bytes here and in every request.

    Returns:
        Size of the file in bytes.

    Raises:
        EsrError: The SAE cannot be had, has no such latent, or is of a kind whose latents depend
            on each other (top-k).
    """
    sae = open_sae(ref)
    config = sae.config
    if config.architecture not in ELEMENTWISE:
        raise EsrError(
            f"In a {config.architecture} SAE every latent's activation depends on all others: its "
            "rows do not stand alone, so the whole SAE has to be there."
        )
    kept = sorted(set(latents))
    for latent in kept:
        config.check_latent(latent)
    with sae.open_weights() as weights:
        tensors = {
            "W_enc": weights.get_tensor("W_enc")[:, kept].contiguous(),
            "W_dec": weights.get_tensor("W_dec")[kept].contiguous(),
            "b_enc": weights.get_tensor("b_enc")[kept].contiguous(),
            "b_dec": weights.get_tensor("b_dec"),
            LATENTS: torch.tensor(kept, dtype=torch.int64),
        }
        if config.architecture == "jumprelu":
            tensors["threshold"] = weights.get_tensor("threshold")[kept].contiguous()
    if rounded:
        tensors |= {name: tensors[name].bfloat16() for name in ("W_enc", "W_dec")}
    origin = RowsOrigin(
        sae=ref,
        digest=sae.digest + ("-bfloat16" if rounded else ""),
        config=json.loads((config.folder / CFG_FILE).read_text("utf-8")),
    )
    try:
        write_whole(file, save(tensors, metadata={ABOUT: origin.model_dump_json()}))
    except OSError as error:
        raise EsrError(
            f"{file} could not be written ({error}): name another one with -o, or free space."
        ) from error
    return file.stat().st_size
