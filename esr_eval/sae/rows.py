"""A few rows of an SAE in one small file, so that a client need not hold the SAE.

Steering needs the decoder rows of the boosted latents, and encoder and decoder rows of the
clamped ones: 64 KB a latent at d_model 8,192 in float32, where the whole SAE takes 4 GB. Whoever
has the SAE writes the file; `-M sae_rows=FILE` uses it in the SAE's place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from esr_eval._util.files import write_whole
from esr_eval._util.paths import given_path
from esr_eval.errors import EsrError
from esr_eval.sae.config import CFG_FILE, SAEConfig, parse_sae_config, tensor_shapes
from esr_eval.sae.files import check_no_pointer, check_weights
from esr_eval.spec import SAERef

LATENTS = "latents"
"""Name of the tensor that lists which latents the file holds, in order."""
ABOUT = "esr_eval"


class RowsOrigin(BaseModel):
    """Where rows come from.

    Attributes:
        sae: The SAE they belong to.
        digest: Digest of the whole SAE's folder, which logs name; it ends in -bfloat16 where rows
            have been rounded.
        config: The SAE's cfg.json.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: SAERef
    digest: str
    config: dict[str, Any]


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
    import torch
    from safetensors.torch import save

    from esr_eval.sae.sparse import ELEMENTWISE, open_sae

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


@dataclass(frozen=True)
class RowsFile:
    """A file of rows, checked.

    Attributes:
        file: Where it lies.
        origin: What its rows are of.
        config: The SAE's config.
        latents: Position of each latent's row in the file.
    """

    file: Path
    origin: RowsOrigin
    config: SAEConfig
    latents: dict[int, int]

    @classmethod
    def read(cls, file: Path, ref: SAERef) -> "RowsFile":
        """Open a file of rows; loads no rows and no torch.

        Args:
            file: As written by `write_rows`.
            ref: The SAE that is wanted.

        Raises:
            EsrError: There is no such file, it holds no rows, or those of another SAE.
        """
        from safetensors import SafetensorError, safe_open

        way_out = "write one with `esr-eval latents rows SUBJECT -o FILE` where the SAE is."
        file = Path(given_path(str(file)))
        if not file.is_file():
            raise EsrError(f"There is no file {file} of SAE rows: {way_out}")
        try:
            check_no_pointer(file)
            with safe_open(file, framework="np") as tensors:
                origin = RowsOrigin.model_validate_json((tensors.metadata() or {})[ABOUT])
                latents = [int(latent) for latent in tensors.get_tensor(LATENTS)]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise EsrError(
                f"{file} holds no SAE rows ({type(error).__name__}): {way_out}"
            ) from error
        if origin.sae != ref:
            raise EsrError(
                f"{file} holds rows of the SAE {name_of(origin.sae)}, but {name_of(ref)} is wanted."
            )
        config = parse_sae_config(origin.config, file)
        for latent in latents:
            config.check_latent(latent)
        if len(set(latents)) < len(latents):
            raise EsrError(f"{file} holds rows of one latent twice: {way_out}")
        shapes = tensor_shapes(config.architecture, config.d_model, len(latents))
        check_weights(file, {**shapes, LATENTS: (len(latents),)}, indices=LATENTS)
        return cls(file, origin, config, {latent: at for at, latent in enumerate(latents)})

    def at(self, latent: int) -> int:
        """Where a latent's row stands in the file.

        Raises:
            EsrError: It is not in there.
        """
        if latent not in self.latents:
            raise EsrError(
                f"{self.file} holds the rows of {len(self.latents)} latents, but not of latent "
                f"{latent}: write it again with `esr-eval latents rows` and that one too."
            )
        return self.latents[latent]


def name_of(ref: SAERef) -> str:
    """The SAE's name in messages."""
    return ref.release if ref.sae_id is None else f"{ref.release} / {ref.sae_id}"
