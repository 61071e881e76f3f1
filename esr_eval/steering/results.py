"""From what was found where the model runs to results, the same for every backend."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.sae.sparse import SparseSAE
from esr_eval.spec import Clamp, Readout
from esr_eval.steering.kernel import reduced
from esr_eval.steering.requests import Generated, Passage, Reading, ReadoutResult, Row, Steered

Readings = Mapping[tuple[int, int], tuple[Tensor | None, int]]
"""What `Intervention.readings` found: by row and readout its value, and how many positions."""
Counts = Mapping[int, tuple[int, int]]
"""One row's receipts: by layer how many positions were edited, and how many held by clamps."""


def counts_of(row: int, receipts: Mapping[int, tuple[Tensor, Tensor]]) -> Counts:
    """One row's part of what `kernel.Intervention.receipts` counted."""
    return {layer: (int(edited[row]), int(held[row])) for layer, (edited, held) in receipts.items()}


def due_positions(row: Steered, fed: int) -> dict[int, int]:
    """How many positions a row's edits call for at each layer that they name.

    Args:
        row: The request.
        fed: Number of tokens that went through the model, prompt included.
    """
    touched: dict[int, set[int]] = {}
    for edit in row.steering.edits if row.steering else ():
        if not isinstance(edit, Clamp) and not edit.strength:
            continue  # changes nothing, and says so
        assert row.steering is not None
        start, stop = edit.bounds(len(row.prompt), row.steering.runtime.skip_first)
        touched.setdefault(edit.layer, set()).update(
            range(start, fed if stop is None else min(fed, stop))
        )
    return {layer: len(positions) for layer, positions in touched.items()}


class _Receipt(NamedTuple):
    edited_positions: int
    expected_positions: int
    held_positions: int


def _receipt(row: Steered, fed: int, counts: Counts) -> _Receipt:
    """What was edited beside what was due; an edit at a layer that the spec does not name is none.

    Args:
        row: The request.
        fed: Number of tokens that went through the model, prompt included.
        counts: What was counted.
    """
    due = due_positions(row, fed)
    edited, held = (sum(counts.get(layer, (0, 0))[k] for layer in due) for k in (0, 1))
    return _Receipt(edited, sum(due.values()) - held, held)


def fed_tokens(row: Row, made: int, ended_by_model: bool) -> int:
    """Number of tokens that went through the model while it generated, prompt included.

    Args:
        row: The request.
        made: Number of tokens generated.
        ended_by_model: The last token is fed back only when the model went on to choose an end.
    """
    return len(row.prompt) + made - (0 if ended_by_model else 1)


def generated(
    row: Row,
    tokens: list[int],
    ended_by_model: bool,
    counts: Counts,
    readouts: list[ReadoutResult],
    finite: bool = True,
) -> Generated:
    """One row's result, with the receipt that is due.

    Args:
        row: The request.
        tokens: What was generated, without the end.
        ended_by_model: Whether an end was chosen.
        counts: What was edited.
        readouts: What was read.
        finite: Whether all its logits were numbers.
    """
    fed = fed_tokens(row, len(tokens), ended_by_model or not finite)
    return Generated(
        tokens=tokens,
        stop_reason="stop" if ended_by_model else "max_tokens",
        readouts=readouts,
        finite=finite,
        **_receipt(row, fed, counts)._asdict(),
    )


def readout_result(readout: Readout, value: Tensor | None, positions: int) -> ReadoutResult:
    """Activations read while generating; none where no position was read."""
    assert readout.latents != "all"  # refused by the backend's check
    return ReadoutResult(readout.latents, [] if value is None else value.tolist(), positions)


def generated_readouts(row: Row, index: int, readings: Readings) -> list[ReadoutResult]:
    """All readouts of a generated row, in the order of its spec.

    Args:
        row: The request.
        index: Its place in the batch.
        readings: What was found for the batch.
    """
    wanted = row.steering.readouts if row.steering else ()
    return [readout_result(one, *readings[index, k]) for k, one in enumerate(wanted)]


def read_value(
    readout: Readout, value: Tensor | None, sae: SparseSAE | None
) -> NDArray[np.float32]:
    """A readout's value over a finished answer; zeros where it names no position.

    Args:
        readout: What was asked for.
        value: What was found.
        sae: The SAE whose latents it names.
    """
    if value is None:
        if readout.latents == "all":
            assert sae is not None
            width = sae.config.n_latents
        else:
            width = 1 if readout.latents == "norm" else len(readout.latents)
        value = reduced(torch.zeros(0, width), readout.reduce)
    return np.asarray(value.float().numpy())


def out_of_range(dtype: str) -> RuntimeError:
    """The error for a residual stream, or what was read of it, that is no number."""
    return RuntimeError(
        "Activations came out infinite or as no number: the residual stream left the range of "
        f"{dtype}; use -M dtype=float32 or bfloat16, or a weaker edit."
    )


def reading(passage: Passage, values: list[NDArray[np.float32]], counts: Counts) -> Reading:
    """What was read over a passage, with the receipt that is due.

    Raises:
        RuntimeError: An activation is no number.
    """
    if not all(np.isfinite(value).all() for value in values):
        raise out_of_range(passage.steering.runtime.dtype)
    return Reading(
        values=values,
        prompt_tokens=len(passage.prompt),
        answer_tokens=len(passage.answer),
        offsets=passage.offsets,
        **_receipt(passage, len(passage.prompt) + len(passage.answer), counts)._asdict(),
    )


def read_results(
    passages: Sequence[Passage],
    readings: Readings,
    receipts: Mapping[int, tuple[Tensor, Tensor]],
    sae: SparseSAE | None,
) -> list[Reading]:
    """What was read over every passage of a batch.

    Args:
        passages: The batch.
        readings: What was found for it.
        receipts: What `kernel.Intervention.receipts` counted.
        sae: The SAE that the readouts name.
    """
    return [
        reading(
            passage,
            [
                read_value(readout, readings[b, k][0], sae)
                for k, readout in enumerate(passage.steering.readouts)
            ],
            counts_of(b, receipts),
        )
        for b, passage in enumerate(passages)
    ]


def means(readings: Readings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean residuals (passages, d_model) and mean norms (passages,) from `plan.plan_means`."""
    found = [value for _, (value, _) in sorted(readings.items(), key=lambda item: item[0])]
    assert all(value is not None for value in found)  # every answer has a token
    values = np.stack([value.numpy() for value in found if value is not None])
    return values[:, :-1], values[:, -1]
