"""What one trial is: the metadata every sample carries from dataset to score."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Condition = Literal["steered", "unsteered"]


UNCALIBRATED = "prior, not calibrated"
"""How a strength was found that is only where a search would have begun."""
OF_NORM = "of the residual's norm"
"""How a strength was found that is a share of the norm, whatever the scores there."""


class Strength(NamedTuple):
    """A latent's strength, and how it was found."""

    value: float
    how: str


class Trial(BaseModel):
    """One latent boosted (or, in the baseline, only named) while one task is answered.

    Stored flat in `Sample.metadata`, so the viewer shows it as a table, `samples_df` as columns,
    and metrics cluster by `latent`.
    """

    model_config = ConfigDict(frozen=True)

    condition: Condition = Field(description="Whether the boost is on.")
    latent: int = Field(ge=0, description="Index of the latent in its SAE.")
    label: str = Field(description="What the latent stands for.")
    strength: float = Field(
        description="Boost in units of the latent's activation; 0 when unsteered."
    )
    strength_found: str | None = Field(
        default=None, description="How the strength was found: calibrated, given, ..."
    )
    topic: str = Field(description="What the task asks about, e.g. 'add two fractions'.")
    seed: int = Field(ge=0, description="Seed of the sampler for this trial.")
    level: float | None = Field(
        default=None,
        description="In a sweep, the strength's distance from the calibrated mean, in its SDs.",
    )
    vector: str | None = Field(
        default=None,
        description="Name of the plain vector that is added instead of a latent's; `latent` then "
        "counts the vectors and `label` names the concept.",
    )
    source_score: float | None = Field(
        default=None,
        description="Where the answer was given its beginning: score of the first attempt of the "
        "answer that the beginning is from.",
    )
    pending: bool = Field(
        default=False,
        description="Whether the latent or its strength is still to be found in the run; it stays "
        "true where that failed. A latent that is still to be chosen is only counted by `latent`.",
    )
