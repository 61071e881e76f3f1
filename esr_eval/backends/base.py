"""What every backend does: rows in, tokens and receipts out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esr_eval.model.answers import Said
from esr_eval.model.template import Settings
from esr_eval.spec import Steering
from esr_eval.steering.requests import Generated, Passage, Reading, Row


@dataclass
class BackendInfo:
    """What a loaded backend tells about itself, for the log."""

    device: str
    versions: dict[str, str] = field(default_factory=dict)
    self_check: str = ""
    sae_digest: str | None = None


class BackendProtocol(Protocol):
    """An engine that generates for a batch of rows with different edits."""

    info: BackendInfo
    template: Settings

    def encode_chat(self, messages: Sequence[dict[str, str]], prefill: str | None) -> list[int]:
        """Token ids of a chat with the model's own template, ready to be answered."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens."""
        ...

    def said(self, row: Row, tokens: Sequence[int]) -> Said:
        """What a model thought, and what it answered."""
        ...

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        ...

    def passage(
        self, messages: Sequence[dict[str, str]], answer: str, steering: Steering
    ) -> Passage:
        """A chat with its whole answer, tokenised to be read."""
        ...

    def check(self, row: Row | Passage) -> None:
        """Raise an `EsrError` when this request cannot be carried out."""
        ...

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows at once."""
        ...

    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """Read activations over finished conversations, all at once."""
        ...

    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The residual stream over answers, unedited.

        Args:
            passages: Conversations; only their answers are averaged over, so neither the template
                nor the attention sinks at the beginning count.
            layer: Decoder layer whose output is read.

        Returns:
            Mean residual of every answer (passages, d_model), and the mean norm of its residuals
            (passages,).

        Raises:
            EsrError: The model has no such layer, or an answer no tokens.
        """
        ...
