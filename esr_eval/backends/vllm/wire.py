"""What travels between a client and the plugin: requests as JSON, rows of SAEs as safetensors.

A request names rows by digest; the rows themselves go to the server once. Nothing that travels is
code. This file lies on the server's path, too.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors.torch import load, save
from torch import Tensor

from esr_eval.sae.encoder import packed
from esr_eval.steering.sampling import Sampling

NO_STOP = 10**9
"""Stands for 'to the end of the sequence' among positions."""
KINDS = ("none", "constant_norm_rescale", "layer_norm")
"""Input normalisations, by number (`sae.encoder.normalise`)."""
Position = Annotated[int, Field(ge=0, le=NO_STOP)]


class Row(NamedTuple):
    """A latent's rows of an SAE, or a vector; all float32.

    Attributes:
        vectors: What is added, and the encoder's row, zeros where nothing is clamped, (2, d_model).
        numbers: The encoder's bias and threshold, and the kind of normalisation, (3,).
    """

    vectors: Tensor
    numbers: Tensor

    def digest(self) -> str:
        """The row's name: what it holds."""
        held = self.vectors.numpy().tobytes() + self.numbers.numpy().tobytes()
        return hashlib.sha256(held).hexdigest()[:32]


def rows_body(rows: Mapping[str, Row]) -> bytes:
    """Rows by digest as a server takes them; 16 bits of each number where that loses nothing."""
    vectors = {f"{digest}/vectors": packed(row.vectors) for digest, row in rows.items()}
    return bytes(save(vectors | {f"{digest}/numbers": row.numbers for digest, row in rows.items()}))


def read_rows(body: bytes) -> dict[str, Row]:
    """Undo `rows_body`; the rows come in the order of their digests."""
    tensors = load(body)
    digests = sorted({name.partition("/")[0] for name in tensors})
    parts = ("vectors", "numbers")
    return {d: Row(*(tensors[f"{d}/{part}"].float() for part in parts)) for d in digests}


class Term(NamedTuple):
    """One edit of one layer; the server puts the row's place in the place of its digest."""

    row: str
    amount: FiniteFloat
    start: Position
    stop: Position
    clamps: bool


class Asked(BaseModel):
    """What a request asks of the plugin.

    Attributes:
        sampling: How to choose its tokens; None leaves that to vLLM.
        edits: Terms by layer.
        reads: By layer where residuals are read: the first position, and the one after the last.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    sampling: Sampling | None = None
    edits: dict[int, list[Term]] = {}
    reads: dict[int, tuple[Position, Position]] = {}

    def rows(self) -> list[str]:
        """Digests of all rows that it names."""
        return [term.row for terms in self.edits.values() for term in terms]

    @classmethod
    def from_json(cls, told: str) -> "Asked":
        """Read what a request brings.

        Raises:
            ValueError: It is malformed.
        """
        try:
            return cls.model_validate_json(told)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise ValueError(f"it is malformed: {'; '.join(faults)}") from error
