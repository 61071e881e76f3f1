"""Which latents are fit to be boosted: concrete labels, and silent on the tasks (paper, latents).

Candidates are drawn at random from the labelled latents, three times as many as are wanted. Kept
are those whose label a judge finds concrete and that have nothing to do with the tasks: they stay
silent on every task prompt (rule `zero`), or are not among the 100 most active latents of any
(rule `top100`, the paper's words). Arithmetic only: no model, no judge.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from esr_eval.dataset import Latent
from esr_eval.errors import EsrError

Rule = Literal["zero", "top100"]
RULES: tuple[str, ...] = get_args(Rule)
TOP = 100
"""Rule `top100`: a latent that ranks so high on any prompt has to do with the tasks (paper)."""

Reason = Literal["unrated", "abstract", "relevant"]
REASONS: dict[Reason, str] = {
    "unrated": "the judge gave no usable rating",
    "abstract": "the label is not concrete enough",
    "relevant": "the latent has to do with the tasks",
}
"""Why a candidate is rejected; the first that applies counts."""


class Activity(BaseModel):
    """What one latent does on the task prompts."""

    model_config = ConfigDict(frozen=True)

    max_activation: float = Field(description="Largest activation on any token of any prompt.")
    prompt: str | None = Field(description="The topic whose prompt that is; None when silent.")
    best_rank: int | None = Field(
        description="Best place (from 1) among all latents by largest activation on one prompt; "
        "None when silent on all."
    )


class Finding(BaseModel):
    """All that is known of one candidate."""

    model_config = ConfigDict(frozen=True)

    activity: Activity
    concreteness: float | None = Field(description="0-100 by the judge; None: no usable rating.")
    unrated_because: str | None = None

    def rejection(self, rule: Rule, min_concreteness: float) -> Reason | None:
        """Why the candidate is rejected; None when it is kept."""
        if self.concreteness is None:
            return "unrated"
        if self.concreteness < min_concreteness:
            return "abstract"
        return "relevant" if self.relevant(rule) else None

    def relevant(self, rule: Rule) -> bool:
        """Whether the latent has to do with the tasks, by this rule."""
        if rule == "zero":
            return self.activity.max_activation > 0
        return self.activity.best_rank is not None and self.activity.best_rank <= TOP


def check_rule(rule: str) -> Rule:
    """Read the rule's name.

    Raises:
        EsrError: There is no such rule.
    """
    if rule not in RULES:
        raise EsrError(
            f"rule={rule} is neither 'zero' (silent on every task prompt) nor 'top100' (not among "
            "the 100 most active latents of any)."
        )
    return "zero" if rule == "zero" else "top100"


def draw_candidates(
    labelled: Sequence[Latent], wanted: int | None, factor: float, seed: int
) -> list[Latent]:
    """A random sample of `factor` times as many as wanted, or all where there are fewer.

    Args:
        labelled: The SAE's latents that have a label.
        wanted: How many latents the run needs; None makes every labelled one a candidate.
        factor: Candidates for each one wanted (paper: 3).
        seed: Seed of the draw.

    Raises:
        EsrError: There are fewer labelled latents than are wanted, or a number is impossible.
    """
    if wanted is None:
        return list(labelled)
    if factor < 1:
        raise EsrError(f"factor={factor} draws fewer candidates than are wanted: give 1 or more.")
    if not 1 <= wanted <= len(labelled):
        raise EsrError(f"wanted={wanted}, but there are {len(labelled)} labelled latents.")
    count = min(len(labelled), round(wanted * factor))
    draw = random.Random(f"candidates-{seed}")  # noqa: S311
    return draw.sample(list(labelled), count)


def activities(
    maxima: NDArray[np.float32], topics: Sequence[str], latents: Sequence[int]
) -> dict[int, Activity]:
    """What each latent does on the prompts.

    Args:
        maxima: Largest activation of every latent of the SAE on every prompt, (prompts, latents).
        topics: Topic of each prompt.
        latents: Which latents to tell of.
    """
    order = np.argsort(-maxima, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, maxima.shape[1] + 1)[None, :], axis=1)
    # A silent latent has a place in the sorted order, but is not among the active ones.
    ranks[maxima <= 0] = maxima.shape[1] + 1
    found = {}
    for latent in latents:
        column = maxima[:, latent]
        highest = float(column.max())
        active = highest > 0
        found[latent] = Activity(
            max_activation=max(0.0, highest),
            prompt=topics[int(column.argmax())] if active else None,
            best_rank=int(ranks[:, latent].min()) if active else None,
        )
    return found


class Funnel(NamedTuple):
    """How many latents are left after each step.

    Attributes:
        labelled: Latents with a label.
        candidates: Drawn from these.
        rejected: Of the candidates, by reason.
        kept: Candidates that passed every test.
        wanted: How many the run needs; None: all that pass.
    """

    labelled: int
    candidates: int
    rejected: dict[Reason, int]
    kept: int
    wanted: int | None

    def rows(self) -> list[tuple[str, int, int]]:
        """Step, rejected there, left after it."""
        found = [
            ("labelled latents", 0, self.labelled),
            ("drawn as candidates", self.labelled - self.candidates, self.candidates),
        ]
        left = self.candidates
        for reason, words in REASONS.items():
            left -= self.rejected[reason]
            found.append((f"rejected: {words}", self.rejected[reason], left))
        if self.wanted is not None and self.wanted < left:
            found.append(("more than are wanted", left - self.wanted, self.wanted))
        return found


def funnel_of(
    findings: Sequence[Finding],
    rule: Rule,
    min_concreteness: float,
    *,
    labelled: int,
    wanted: int | None,
) -> Funnel:
    """Count the rejections."""
    reasons = [finding.rejection(rule, min_concreteness) for finding in findings]
    return Funnel(
        labelled=labelled,
        candidates=len(findings),
        rejected={reason: reasons.count(reason) for reason in REASONS},
        kept=reasons.count(None),
        wanted=wanted,
    )
