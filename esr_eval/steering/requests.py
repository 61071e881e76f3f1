"""What goes into a batch and what comes out of it: rows and passages, tokens and receipts."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from esr_eval.spec import Steering
from esr_eval.steering.sampling import Sampling

StopReason = Literal["stop", "max_tokens"]


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
