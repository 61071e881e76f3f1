"""What travels to a server and back, in bytes before compression."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from esr_eval.scaling.shapes import ModelShape

NDIF_LIMIT = 8 * 2**20
"""Largest answer that comes over NDIF's websocket; a larger one is fetched from its store."""
NDIF_READING = 32 * 2**20
"""Residuals that the NDIF backend asks for in one request, at most."""
INDEX = 8
"""Bytes of a token id or mask entry."""
TERM = 38
"""Bytes of one edit of one row beside its direction: amount, bounds, slot, flags."""
ROW = 130
"""Bytes of one row's seed, temperature, limits and receipt."""
NDIF_CODE = 91_000
"""Our source, names and nnsight's frame in every request to NDIF; 14 KB of it after zstd."""
VLLM_SOURCES = ("edits.py", "backends/vllm_hook.py")
"""Our files that travel in every request to vLLM, as they are."""
VLLM_FRAME = 1_000
"""What pickles and loads them there."""
BASE64 = 4 / 3


@dataclass(frozen=True)
class Batch:
    """One batch as the main run or the ablation sends it.

    Attributes:
        rows: Requests in it.
        prompt: Tokens of the longest prompt.
        answer: Most tokens of an answer.
        boosted: Different latents that are boosted, one in each row.
        clamped: Latents that are clamped, the same in every row.
        width: Bytes of an SAE value as it travels: 2 where 16 bits hold it exactly, else 4.
    """

    rows: int
    prompt: int
    answer: int
    boosted: int = 1
    clamped: int = 0
    width: int = 2


def rows_bytes(shape: ModelShape, batch: Batch) -> int:
    """SAE rows of a batch: decoder rows of all latents, encoder rows of the clamped ones."""
    return (batch.boosted + 2 * batch.clamped) * shape.d_model * batch.width


def ndif_request(shape: ModelShape, batch: Batch) -> int:
    """One batch: code, SAE rows once each, every row's edits, prompt and settings.

    The noise of the sampler is computed there, from the rows' seeds.
    """
    terms = (batch.clamped + (1 if batch.boosted else 0)) * TERM
    prompt = 2 * batch.prompt * INDEX  # ids and their mask
    return NDIF_CODE + rows_bytes(shape, batch) + batch.rows * (terms + prompt + ROW)


def ndif_answer(batch: Batch) -> int:
    """Tokens as they were chosen, and as transformers' loop returned them."""
    return batch.rows * (batch.prompt + 2 * batch.answer) * INDEX


def residual_bytes(shape: ModelShape, positions: int, width: int) -> int:
    """Residuals of one answer, brought back so that the client encodes them with the whole SAE.

    Args:
        shape: The model.
        positions: Positions that are read.
        width: Bytes of one of the model's values.
    """
    return positions * shape.d_model * width


def answers_per_reading(shape: ModelShape, positions: int, width: int) -> int:
    """Answers whose residuals are brought back in one request; at least one."""
    return max(1, NDIF_READING // residual_bytes(shape, positions, width))


@cache
def vllm_code() -> int:
    """Bytes of a vLLM request that are code, before base64."""
    files = (resources.files("esr_eval") / name for name in VLLM_SOURCES)
    return VLLM_FRAME + sum(len(file.read_bytes()) for file in files)


def vllm_request(shape: ModelShape, batch: Batch) -> int:
    """One row's request to vLLM, which carries all of its edits itself, as base64."""
    return int(BASE64 * (vllm_code() + rows_bytes(shape, batch)))
