"""What a whole-paper run takes: responses, judge calls, tokens, hours, money."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from esr_eval.calibration.bisection import MAX_EMPTY_ROUNDS
from esr_eval.paper.steps import Step
from esr_eval.subjects import PAPER_GRADER, Subject

PRICES = {PAPER_GRADER: (1.0, 5.0)}
"""US dollars per million tokens read and written by a judge, where its list price is known."""
FREE = ("esr-judge/", "mockllm/", "hf/", "vllm/", "esr/")
"""Judges that run on the user's own machine."""

PROMPT_TOKENS = 45
"""A task in its chat template, rounded up."""
VERDICT_READ, VERDICT_WRITTEN = 800, 110
"""Tokens of a judge's instructions, and of its answer; the response comes on top."""
TOKENS_PER_SECOND = {"smollm2-135m": 90.0}
"""Tokens generated per second where they were measured: in batches of 32 on 2 CPU cores."""


@dataclass(frozen=True)
class Estimate:
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
    """

    generations: int
    generated: int
    read: int
    verdicts: int
    judge_read: int
    judge_written: int
    hours: float | None
    dollars: float | None


def estimate(
    steps: Sequence[Step],
    subject: Subject,
    judge: str,
    *,
    speed: float | None = None,
    price: tuple[float, float] | None = None,
) -> Estimate:
    """Add up what the steps take.

    Args:
        steps: The steps that have not ended.
        subject: Who answers.
        judge: Who judges.
        speed: Tokens per second that the subject generates; None takes what is known.
        price: Dollars per million tokens that the judge reads and writes; None likewise.
    """
    generations = sum(step.generations for step in steps)
    readings = sum(step.readings for step in steps)
    verdicts = sum(step.verdicts for step in steps)
    generated = sum(step.generations * _longest(step, subject) for step in steps)
    judge_read = verdicts * (VERDICT_READ + subject.max_tokens)
    judge_written = verdicts * VERDICT_WRITTEN
    if price is None:
        price = (0.0, 0.0) if judge.startswith(FREE) else PRICES.get(judge)
    speed = speed or TOKENS_PER_SECOND.get(subject.name)
    return Estimate(
        generations=generations,
        generated=generated,
        read=PROMPT_TOKENS * generations + readings * (PROMPT_TOKENS + subject.max_tokens),
        verdicts=verdicts,
        judge_read=judge_read,
        judge_written=judge_written,
        hours=generated / speed / 3600 if speed else None,
        dollars=(judge_read * price[0] + judge_written * price[1]) / 1e6 if price else None,
    )


def _longest(step: Step, subject: Subject) -> int:
    if step.task == "calibrate" and subject.calibration is not None:
        # A search asks for responses of this length whatever --max-tokens says.
        return subject.calibration.max_tokens
    return subject.max_tokens


def estimate_table(
    steps: Sequence[Step],
    done: Sequence[str],
    subject: Subject,
    judge: str,
    speed: float | None,
    price: tuple[float, float] | None,
) -> Table:
    """One row for each step and the sum of those that are still to do.

    Args:
        steps: All steps.
        done: Keys of those that have ended.
        subject: Who answers.
        judge: Who judges.
        speed: See `estimate`.
        price: See `estimate`.
    """
    table = Table(
        title=f"The paper on {subject.name}, judged by {judge} (at most)",
        caption="A calibration round in which nothing can be judged is repeated, at most "
        f"{MAX_EMPTY_ROUNDS} times a latent, and a judge is asked again after a reply that cannot "
        "be used: both come on top.",
    )
    table.add_column("step", no_wrap=True)
    columns = ("responses", "tokens", "judge calls", "judge tokens", "hours", "dollars")
    for column in columns:
        table.add_column(column, justify="right")
    for step in steps:
        if step.key in done:
            table.add_row(step.key, "done", *[""] * (len(columns) - 1))
            continue
        table.add_row(step.key, *_cells(estimate([step], subject, judge, speed=speed, price=price)))
    table.add_section()
    rest = [step for step in steps if step.key not in done]
    table.add_row("to do", *_cells(estimate(rest, subject, judge, speed=speed, price=price)))
    return table


def _cells(found: Estimate) -> tuple[str, ...]:
    return (
        f"{found.generations:,}",
        f"{found.generated + found.read:,}",
        f"{found.verdicts:,}",
        f"{found.judge_read + found.judge_written:,}",
        "?" if found.hours is None else f"{found.hours:.2f}",
        "?" if found.dollars is None else f"{found.dollars:,.2f}",
    )
