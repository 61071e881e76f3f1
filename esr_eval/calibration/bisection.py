"""The strength at which the mean first-attempt score is 30 of 100, by bisection.

Probabilistic bisection (Waeber, Frazier & Henderson 2011, "A Bayesian approach to stochastic root
finding") as the paper uses it (arXiv 2602.06941, appendix on boost calibration): keep a
distribution over where the root is, test its median, and shift probability towards the side that
the noisy answer points to. Pure arithmetic: no model, no judge, no Inspect.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from scipy.special import betainc

from esr_eval.errors import EsrError
from esr_eval.subjects import RELATIVE_PRIOR, CalibrationPrior, Subject

EVIDENCE_WEIGHT = 5.0
"""Weight w of a round's mean score in Beta(0.5 + w s, 0.5 + w (1 - s)) (paper)."""

GRID_POINTS = 4001
"""Steps of the grid between the bounds: 1/4000 of the range, far below the noise."""

MAX_EMPTY_ROUNDS = 3
"""Rounds without a single judged response that are repeated before the search gives up."""

CHECK_SAMPLES = 5
"""Fresh responses at the final strength, to state the score that it achieves."""


def calibration_prior(
    subject: Subject, changes: Mapping[str, Any] | None = None
) -> CalibrationPrior:
    """The subject's prior with changes; a relative one where the paper has none for it.

    Raises:
        EsrError: A changed field has no valid value.
    """
    # Half the longest response, as in the paper: a model that thinks first needs more of it.
    relative = RELATIVE_PRIOR.model_copy(update={"max_tokens": max(1, subject.max_tokens // 2)})
    fields = (subject.calibration or relative).model_dump()
    try:
        prior = CalibrationPrior.model_validate({**fields, **(changes or {})})
    except ValidationError as error:
        wrong = ", ".join(str(part["loc"][0]) for part in error.errors())
        raise EsrError(
            f"The calibration prior of {subject.name} is invalid ({wrong}): pass for example "
            '-T prior=\'{"prior_mean": 10, "prior_std": 10, "lower": 0, "upper": 50}\'.'
        ) from None
    if prior.method == "curve" and (prior.prior_mean <= 0 or prior.lower < 0):
        raise EsrError(
            f"method=curve searches strengths above 0, but the calibration prior of {subject.name} "
            f"has prior_mean {prior.prior_mean:g} and lower {prior.lower:g}: change these, or pass "
            "method=paper."
        )
    return prior


def probability_above(
    scores: Sequence[float], target: float, weight: float = EVIDENCE_WEIGHT
) -> float:
    """Probability that the true mean score lies above the target, given one round's scores.

    Args:
        scores: Judged first-attempt scores of the round, 0-100; at least one.
        target: Score searched for, 0-100.
        weight: Weight of the round's mean against the Jeffreys prior Beta(0.5, 0.5).
    """
    share = float(np.mean(scores)) / 100
    return 1.0 - float(betainc(0.5 + weight * share, 0.5 + weight * (1 - share), target / 100))


class Round(BaseModel):
    """One test of one strength: the judged first-attempt scores it gave."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    strength: float = Field(allow_inf_nan=False, alias="boost")  # its name in files and logs
    scores: tuple[float, ...] = Field(
        description="First-attempt scores, 0-100; empty: no judgement."
    )
    unscored: int = Field(default=0, ge=0, description="Responses not judged, or without attempt.")

    @field_validator("scores")
    @classmethod
    def _in_range(cls, scores: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= score <= 100 for score in scores):
            raise ValueError("scores lie between 0 and 100")
        return scores

    def scaled(self, factor: float) -> Self:
        """The same test, its strength in another unit."""
        return self.model_copy(update={"strength": self.strength * factor})

    @property
    def mean(self) -> float | None:
        """Mean score of the round; None when nothing could be judged."""
        return float(np.mean(self.scores)) if self.scores else None


class Search(BaseModel):
    """The search for one strength: its prior and the rounds so far.

    Immutable: `observe` returns the next state. The posterior follows from the rounds, so the
    JSON form is the history alone, and an interrupted search continues where it stopped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: ClassVar[str]

    prior: CalibrationPrior
    rounds: tuple[Round, ...] = ()

    @model_validator(mode="after")
    def _of_its_method(self) -> Self:
        if self.prior.method != self.method:
            raise ValueError(f"it is no search with method={self.method}")
        return self

    @property
    @abstractmethod
    def next_strength(self) -> float:
        """The strength to test next."""

    @property
    @abstractmethod
    def responses(self) -> int:
        """Responses of a round."""

    @property
    @abstractmethod
    def most_rounds(self) -> int:
        """Rounds with evidence that end the search."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the search has ended well."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """The strength found."""

    @abstractmethod
    def quantile(self, q: float) -> float:
        """Posterior quantile of the strength."""

    @property
    def counted(self) -> int:
        """Rounds with evidence."""
        return sum(bool(tested.scores) for tested in self.rounds)

    @property
    def empty(self) -> int:
        """Rounds in which nothing could be judged; they move nothing and are repeated."""
        return len(self.rounds) - self.counted

    @property
    def failed(self) -> bool:
        """Whether too many rounds stayed without a judgement to go on."""
        return not self.finished and self.empty > MAX_EMPTY_ROUNDS

    def observe(self, scores: Sequence[float], unscored: int = 0) -> Self:
        """The state after testing the next strength.

        Args:
            scores: Judged first-attempt scores (0-100) of the responses; empty when none could be
                judged, which leaves the posterior as it is.
            unscored: Responses that could not be judged or held no attempt.
        """
        tested = Round(strength=self.next_strength, scores=tuple(scores), unscored=unscored)
        return type(self)(prior=self.prior, rounds=(*self.rounds, tested))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `model_validate` restores the same state."""
        return self.model_dump(mode="json")


class Bisection(Search):
    """The paper's search."""

    method = "paper"

    @cached_property
    def grid(self) -> npt.NDArray[np.float64]:
        """Strengths under consideration."""
        return np.linspace(self.prior.lower, self.prior.upper, GRID_POINTS)

    @cached_property
    def posterior(self) -> npt.NDArray[np.float64]:
        """Probability of each strength of the grid being the one searched for."""
        z = (self.grid - self.prior.prior_mean) / self.prior.prior_std
        log_mass = -0.5 * z**2
        for tested in self.rounds:
            if not tested.scores:
                continue
            above = probability_above(tested.scores, self.prior.target)
            # The score falls as the strength rises: a score above the target means that the root
            # lies higher. Logarithms, so that long runs of one answer cannot underflow.
            log_mass = log_mass + np.log(np.where(self.grid > tested.strength, above, 1 - above))
        mass = np.exp(log_mass - log_mass.max())
        return np.asarray(mass / mass.sum(), dtype=np.float64)

    def quantile(self, q: float) -> float:
        """Posterior quantile, interpolated between grid points."""
        return float(np.interp(q, np.cumsum(self.posterior), self.grid))

    @property
    def strength(self) -> float:
        """The posterior's median."""
        return self.quantile(0.5)

    @property
    def next_strength(self) -> float:
        """The posterior's median, too."""
        return self.strength

    @property
    def responses(self) -> int:
        """As the prior says."""
        return self.prior.samples_per_round

    @property
    def most_rounds(self) -> int:
        """As the prior says."""
        return self.prior.rounds

    @property
    def finished(self) -> bool:
        """Whether all rounds have been counted."""
        return self.counted >= self.prior.rounds
