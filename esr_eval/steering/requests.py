"""What goes into a batch and what comes out of it: rows and passages, tokens and receipts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.sae.sparse import SparseSAE
from esr_eval.spec import Clamp, Readout, Steering
from esr_eval.steering.kernel import reduced
from esr_eval.steering.sampling import Sampling

StopReason = Literal["stop", "max_tokens"]
Readings = Mapping[tuple[int, int], tuple[Tensor | None, int]]
"""What `Intervention.readings` found: by row and readout its value, and how many positions."""
Counts = Mapping[int, tuple[int, int]]
"""One row's receipts: by layer how many positions were edited, and how many held by clamps."""


@dataclass(frozen=True)
class Row:
    """One request of a batch.

    Attributes:
        prompt: Token ids, special tokens included, no padding.
        sampling: How to choose tokens.
        steering: Edits and readouts; None leaves the model alone.
        prefilled: Whether the prompt ends in the beginning of the answer.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    steering: Steering | None = None
    prefilled: bool = False


@dataclass(frozen=True)
class Passage:
    """A finished conversation to read activations over, in one forward pass.

    Attributes:
        prompt: Token ids up to where the answer begins.
        answer: Token ids of the answer.
        offsets: Where each token of the answer stands in its text, (len(answer), 2), characters.
        steering: What to edit during the pass and what to read.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    offsets: NDArray[np.int64]
    steering: Steering


class Reading(NamedTuple):
    """What was read over a passage.

    Attributes:
        values: One float32 array per readout of the spec: (latents,) for max, mean and rate,
            (latents, positions) for tokens; the norm counts as one latent. Maxima and means of
            no position are 0.
        prompt_tokens: Length of the prompt.
        answer_tokens: Length of the answer.
        offsets: As in the passage.
        edited_positions: The receipt, as in `Generated`.
        expected_positions: What the receipt must be.
        held_positions: As in `Generated`.
    """

    values: list[NDArray[np.float32]]
    prompt_tokens: int
    answer_tokens: int
    offsets: NDArray[np.int64]
    edited_positions: int
    expected_positions: int
    held_positions: int = 0


class Steered(Protocol):
    """What a plan needs of a row or passage."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids before the answer."""
        ...

    @property
    def steering(self) -> Steering | None:
        """Edits and readouts."""
        ...


@dataclass(frozen=True)
class ReadoutResult:
    """Activations of one readout.

    Attributes:
        latents: Which latents, or that the norm was read.
        values: One value per latent (max, mean, rate), or one list of values per latent over
            the positions read (tokens).
        positions: How many positions were read.
    """

    latents: tuple[int, ...] | Literal["norm"]
    values: list[float] | list[list[float]]
    positions: int


class Generated(NamedTuple):
    """One row's result.

    Attributes:
        tokens: Generated ids, the end-of-text token left out.
        stop_reason: Whether the model ended by itself or ran into its token limit.
        edited_positions: The receipt: positions whose residual stream the edits really changed, as
            the next layer received it, summed over layers.
        expected_positions: What the receipt must be: positions that the spec and the tokens made
            call for, less the held ones.
        readouts: One result per readout of the spec.
        held_positions: Positions at which clamps alone act and found nothing to change: their
            latents had the wanted values, to the precision of the residual.
        finite: False when the row ended because its logits were no numbers.
    """

    tokens: list[int]
    stop_reason: StopReason
    edited_positions: int
    expected_positions: int
    readouts: list[ReadoutResult]
    held_positions: int = 0
    finite: bool = True


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


def generated_readouts(row: Row, index: int, readings: Readings) -> list[ReadoutResult]:
    """All readouts of a generated row, in the order of its spec.

    Args:
        row: The request.
        index: Its place in the batch.
        readings: What was found for the batch.
    """
    results = []
    for k, readout in enumerate(row.steering.readouts if row.steering else ()):
        assert readout.latents != "all"  # refused by the backend's check
        value, positions = readings[index, k]
        values = [] if value is None else value.tolist()  # none where no position was read
        results.append(ReadoutResult(readout.latents, values, positions))
    return results


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
