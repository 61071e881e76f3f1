"""Shapes of the subjects: what decides their FLOP and bytes."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from esr_eval.errors import EsrError
from esr_eval.subjects import BYTES_PER_PARAMETER, Subject

BYTES = {**BYTES_PER_PARAMETER, "fp8": 1}
"""Bytes of a weight; fp8 is vLLM's."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated MLP, and its SAE.

    Attributes:
        name: The subject's name.
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP.
        n_heads: Query heads.
        n_kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocabulary: Size of the vocabulary.
        tied: Whether the last linear layer is the input embedding.
        norms: Norms per decoder layer.
        n_latents: Latents of its SAE.
    """

    name: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    norms: int
    n_latents: int

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of all decoder layers: each is used once for every token."""
        heads = 2 * self.n_heads + 2 * self.n_kv_heads  # queries and output, keys and values
        return self.n_layers * self.d_model * (heads * self.head_dim + 3 * self.d_ff)

    @property
    def head_weights(self) -> int:
        """Weights of the last linear layer: used once for every token that is chosen."""
        return self.vocabulary * self.d_model

    @property
    def parameters(self) -> int:
        """All of them, norms and embedding included."""
        norms = (self.norms * self.n_layers + 1) * self.d_model
        return self.layer_weights + self.head_weights * (1 if self.tied else 2) + norms

    @property
    def kv_values(self) -> int:
        """Numbers that the key-value cache keeps for every position."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    @property
    def sae_weights(self) -> int:
        """Weights of the SAE's two matrices."""
        return 2 * self.d_model * self.n_latents


@cache
def _shapes() -> dict[str, dict[str, int]]:
    text = resources.files("esr_eval.data").joinpath("shapes.json").read_text("utf-8")
    found: dict[str, dict[str, int]] = json.loads(text)
    return found


def shape_of(subject: Subject) -> ModelShape:
    """The shape of a named subject.

    Raises:
        EsrError: It is not known.
    """
    known = _shapes()
    rest = known.get(subject.name)
    if rest is None:
        tuned = [name for name in known if subject.name.startswith(name)]
        rest = known[tuned[0]] if tuned else None
    if rest is None or not (subject.n_layers and subject.d_model and subject.n_latents):
        raise EsrError(f"The shape of {subject.name} is not known; there are: {', '.join(known)}.")
    return ModelShape(
        name=subject.name,
        n_layers=subject.n_layers,
        d_model=subject.d_model,
        n_latents=subject.n_latents,
        d_ff=rest["d_ff"],
        n_heads=rest["n_heads"],
        n_kv_heads=rest["n_kv_heads"],
        head_dim=rest["head_dim"],
        vocabulary=rest["vocabulary"],
        tied=bool(rest["tied"]),
        norms=rest["norms"],
    )
