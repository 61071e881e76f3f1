"""What a run takes: responses, judge calls, tokens, hours, money."""

from typing import NamedTuple, Self

from esr_eval.scorers.grader import BATCH_HOURS, batch_rate
from esr_eval.subjects import PAPER_GRADER, Subject

PRICES = {PAPER_GRADER: (1.0, 5.0)}
"""US dollars per million tokens read and written by a judge, where its list price is known; in
batches: `scorers.grader.BATCH_RATES`."""
FREE = ("esr-judge/", "mockllm/", "hf/", "vllm/", "esr/")
"""Judges that run on the user's own machine."""

PROMPT_TOKENS = 45
"""A task in its chat template, rounded up."""
VERDICT_READ, VERDICT_WRITTEN = 800, 110
"""Tokens of a judge's instructions, and of its answer; the response comes on top."""


def price_of(judge: str) -> tuple[float, float] | None:
    """US dollars per million tokens that a judge reads and writes; None where it is not known."""
    return (0.0, 0.0) if judge.startswith(FREE) else PRICES.get(judge)


class Cost(NamedTuple):
    """Upper bounds: responses may end early; what is cached or resumed costs nothing.

    Attributes:
        generations: Responses.
        generated: Tokens that the subject writes.
        read: Tokens that the subject reads, readings included.
        verdicts: Questions to judges.
        judge_read: Tokens that judges read.
        judge_written: Tokens that judges write.
        hours: Of generation; None where the subject's speed is not known.
        dollars: For the judge; None where its price is not known.
        batched: Of the questions, those that are asked in batches.
    """

    generations: int
    generated: int
    read: int
    verdicts: int
    judge_read: int
    judge_written: int
    hours: float | None
    dollars: float | None
    batched: int = 0

    @classmethod
    def of(
        cls,
        subject: Subject,
        judge: str,
        *,
        generations: int,
        generated: int,
        verdicts: int,
        readings: int = 0,
        speed: float | None = None,
        price: tuple[float, float] | None = None,
        batched: int = 0,
    ) -> Self:
        """Add up what a run takes.

        Args:
            subject: Who answers.
            judge: Who judges.
            generations: Responses.
            generated: Tokens of these, at most.
            verdicts: Responses shown to judges.
            readings: Passes over finished answers.
            speed: Tokens per second that the subject generates; None leaves the hours open.
            price: Dollars per million tokens that the judge reads and writes; None takes what is
                known.
            batched: Of the verdicts, those that are asked for in batches, at the rate for these.
        """
        judge_read = verdicts * (VERDICT_READ + subject.max_tokens)
        judge_written = verdicts * VERDICT_WRITTEN
        if price is None:
            price = price_of(judge)
        rate = batch_rate(judge)
        cheaper = batched * (1 - rate) / verdicts if batched and rate is not None else 0.0
        return cls(
            generations=generations,
            generated=generated,
            read=PROMPT_TOKENS * generations + readings * (PROMPT_TOKENS + subject.max_tokens),
            verdicts=verdicts,
            judge_read=judge_read,
            judge_written=judge_written,
            hours=generated / speed / 3600 if speed else None,
            dollars=(
                (1 - cheaper) * (judge_read * price[0] + judge_written * price[1]) / 1e6
                if price
                else None
            ),
            batched=batched,
        )

    def plus_verdicts(self, other: Self) -> Self:
        """The same with the verdicts of another judge on top."""
        known = self.dollars is not None and other.dollars is not None
        return self._replace(
            verdicts=self.verdicts + other.verdicts,
            judge_read=self.judge_read + other.judge_read,
            judge_written=self.judge_written + other.judge_written,
            dollars=(self.dollars or 0.0) + (other.dollars or 0.0) if known else None,
        )

    def __str__(self) -> str:
        """The cost in one line."""
        hours = "unknown hours" if self.hours is None else _span(self.hours)
        price = "a judge of unknown price" if self.dollars is None else f"${self.dollars:,.2f}"
        in_batches = f", in batches that can take {BATCH_HOURS} hours" if self.batched else ""
        return (
            f"{self.generations:,} responses ({self.generated + self.read:,} tokens, {hours}) and "
            f"{self.verdicts:,} judge calls ({price}{in_batches})"
        )


def _span(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    minutes = round(hours * 60)
    return f"{minutes} minutes" if minutes else "less than a minute"
