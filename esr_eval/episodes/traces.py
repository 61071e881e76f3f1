"""One answer with the activations of every token: what statistics and figures are made of."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from esr_eval.data.trial import Trial
from esr_eval.episodes.region_tokens import Region, measured, token_kinds

SETS = ("detectors", "backtracking", "boosted")
"""Sets of latents that are read, in the order in which they are shown."""


@dataclass(frozen=True)
class LatentSet:
    """Latents read together.

    Attributes:
        name: Of the set: a published name, a file, or the latents themselves.
        latents: Indices, in the order of the activations.
    """

    name: str
    latents: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Activations over one answer.

    Attributes:
        sample_id: Of the sample in its log.
        trial: What was asked, and under which boost.
        response: The answer.
        activations: By set of latents, float32 (latents, tokens).
        offsets: Characters of each token, (tokens, 2): start, and end (not included).
        regions: Of the answer in characters, as the judge marked them; None without a verdict
            that can be used.
        multi_attempt: Whether the answer was taken for one with several attempts.
    """

    sample_id: str
    trial: Trial
    response: str
    activations: dict[str, NDArray[np.float32]]
    offsets: NDArray[np.int64]
    regions: list[Region] | None
    multi_attempt: bool

    @property
    def steered(self) -> bool:
        """Whether this is an episode; else it is an unsteered answer, to compare with."""
        return self.trial.condition == "steered"

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        """Region of each token, (tokens,); empty text where there is none."""
        return token_kinds(self.response, self.offsets, measured(self.regions or []))
