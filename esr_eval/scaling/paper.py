"""What a whole-paper run takes: tokens of each step, hours at best, requests, judge."""

from dataclasses import dataclass

from esr_eval.paper.estimate import PROMPT_TOKENS, Estimate
from esr_eval.paper.scales import SCALES
from esr_eval.paper.steps import Choices, Step, plan_steps
from esr_eval.scaling.speed import MEAN_ANSWER, NO_SOFTWARE, Plan, Software
from esr_eval.strengths import responses_per_latent
from esr_eval.subjects import Subject

SECONDS_PER_HOUR = 3600
JUDGE_LIMITS = {
    "tier 1": (50, 50_000, 10_000),
    "tier 4": (4_000, 4_000_000, 800_000),
}
"""Requests, tokens read and tokens written per minute that the paper's judge allows an account."""


def full_steps(
    subject: Subject, *, tuned: bool = False, vectors: int = 0, graders: int = 0
) -> list[Step]:
    """The steps of the paper's own size, nothing calibrated yet.

    Args:
        subject: Who answers.
        tuned: Whether there is a fine-tuned subject, whose experiment is run too.
        vectors: Concept vectors of the vector experiment; 0 leaves it out.
        graders: Further judges of the cross-judge experiment.
    """
    scale = SCALES["full"]
    each = responses_per_latent(subject) if subject.calibration else 0
    uncalibrated = {
        "calibrate": scale.latents * each,
        "calibrate_sweep": scale.sweep[1] * each,
        "calibrate_tuned": scale.latents * each,
    }
    names = tuple(f"judge/{number}" for number in range(graders))
    return plan_steps(
        Choices(scale, n_vectors=vectors, graders=names, tuned=tuned, uncalibrated=uncalibrated)
    )


@dataclass(frozen=True)
class Hours:
    """Least time of a run.

    Attributes:
        generating: Hours in which tokens are generated.
        reading: Hours in which prompts and finished answers are read.
        rows: Rows of each copy's batch.
    """

    generating: float
    reading: float
    rows: int

    @property
    def total(self) -> float:
        """Both."""
        return self.generating + self.reading


def hours(
    plan: Plan, found: Estimate, subject: Subject, rows: int, software: Software = NO_SOFTWARE
) -> Hours:
    """Least time on given GPUs: every answer at full length, every batch full.

    Args:
        plan: How the GPUs are used.
        found: Tokens of the run.
        subject: Who answers.
        rows: Rows of each copy's batch that are wanted; fewer where they do not fit.
        software: What a step takes at least.
    """
    longest = PROMPT_TOKENS + subject.max_tokens
    rows = min(rows, plan.most_rows(longest))
    context = PROMPT_TOKENS + MEAN_ANSWER * subject.max_tokens
    speed = plan.tokens_per_second(rows, context, software)
    reading = plan.read_seconds(found.read, PROMPT_TOKENS, rows)
    return Hours(found.generated / speed / SECONDS_PER_HOUR, reading / SECONDS_PER_HOUR, rows)


def judge_hours(found: Estimate, limits: tuple[int, int, int]) -> tuple[float, str]:
    """Least time of judging under an account's limits, and which of them it is.

    Args:
        found: Verdicts and tokens of the run.
        limits: Requests, tokens read and tokens written per minute.
    """
    needed = {
        "requests": found.verdicts / limits[0],
        "tokens read": found.judge_read / limits[1],
        "tokens written": found.judge_written / limits[2],
    }
    slowest = max(needed, key=lambda name: needed[name])
    return needed[slowest] / 60, slowest
