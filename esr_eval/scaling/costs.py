"""FLOP, bytes and memory of the model, of our edit, and of the edit as the paper's code makes it.

A product of an (m, k) and a (k, n) matrix counts 2 m k n FLOP. What is linear in d_model without a
matrix (norms, additions, comparisons) is left out on all sides: it is below 1 % of any of them.
"""

from dataclasses import dataclass

from esr_eval.scaling.shapes import ModelShape

FLOAT32 = 4
PAPER_BOOSTS, PAPER_CLAMPS = 1, 26
"""The main run boosts one latent; the ablation holds 26 detectors at 0 beside it."""


@dataclass(frozen=True)
class Cost:
    """Work of one forward pass.

    Attributes:
        flop: Of matrix products.
        read: Bytes that have to come from memory, at the least.
    """

    flop: float
    read: float

    def __add__(self, other: "Cost") -> "Cost":
        """Both, one after the other."""
        return Cost(self.flop + other.flop, self.read + other.read)


def decode_step(shape: ModelShape, rows: int, context: float, width: int) -> Cost:
    """One token for each row.

    Args:
        shape: The model.
        rows: Rows of the batch.
        context: Positions in a row's key-value cache, on average.
        width: Bytes of a weight. Keys and values take as many, or two where weights take one.
    """
    weights = shape.layer_weights + shape.head_weights
    attention = 4 * shape.n_layers * shape.n_heads * shape.head_dim * context
    return Cost(
        rows * (2 * weights + attention), weights * width + rows * context * kv_bytes(shape, width)
    )


def prompt_pass(shape: ModelShape, tokens: int, width: int, rows: int = 1, logits: int = 1) -> Cost:
    """Whole prompts in one pass; attention counts every pair of positions, masked ones too.

    Args:
        shape: The model.
        tokens: Length of a prompt.
        width: Bytes of a weight.
        rows: How many prompts.
        logits: Positions of each whose logits are computed: the last, or all of them.
    """
    attention = 4 * shape.n_layers * shape.n_heads * shape.head_dim * tokens**2
    flop = 2 * (tokens * shape.layer_weights + logits * shape.head_weights) + attention
    return Cost(rows * flop, (shape.layer_weights + shape.head_weights) * width)


def kv_bytes(shape: ModelShape, width: int) -> int:
    """Bytes of keys and values for one position."""
    return shape.kv_values * max(width, 2)


def sparse_edit(shape: ModelShape, positions: int, boosts: int, clamps: int, rows: int = 1) -> Cost:
    """Our edit at one layer: single encoder and decoder rows, in float32.

    Args:
        shape: The model.
        positions: Positions of the pass in each row.
        boosts: Boosted latents (or vectors) of each row.
        clamps: Latents that are clamped, the same ones in every row.
        rows: Rows of the batch; each holds its own stack of directions.
    """
    terms = boosts + clamps
    flop = 2 * shape.d_model * (terms + clamps) * positions * rows
    return Cost(flop, FLOAT32 * shape.d_model * (rows * terms + clamps))


def dense_edit(shape: ModelShape, positions: int, width: int, rows: int = 1) -> Cost:
    """The same edit through the whole SAE: one encode and two decodes, whatever is edited.

    Args:
        shape: The model.
        positions: Positions of the pass in each row.
        width: Bytes of an SAE weight.
        rows: Rows of the batch.
    """
    matrix = shape.d_model * shape.n_latents
    return Cost(3 * 2 * matrix * positions * rows, 3 * matrix * width)


def sparse_memory(shape: ModelShape, boosts: int, clamps: int, rows: int = 1) -> int:
    """Bytes that our edit keeps in the memory of the model: the rows it reads."""
    return int(sparse_edit(shape, 1, boosts, clamps, rows).read)


def dense_memory(shape: ModelShape, width: int) -> int:
    """Bytes that a whole SAE keeps there."""
    return shape.sae_weights * width
