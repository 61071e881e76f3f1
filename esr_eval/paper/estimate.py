"""What a whole-paper run takes: responses, judge calls, tokens, hours, money."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from esr_eval.calibration.bisection import MAX_EMPTY_ROUNDS, calibration_prior
from esr_eval.calibration.cost import Cost, price_of
from esr_eval.paper.run import Step, can_wait
from esr_eval.scorers.grader import BATCH_HOURS, batch_rate
from esr_eval.subjects import Subject

TOKENS_PER_SECOND = {"smollm2-135m": 90.0, "smollm2-135m-esr": 90.0}
"""Tokens generated per second where they were measured: in batches of 32 on 2 CPU cores."""


def estimate(
    steps: Sequence[Step],
    subject: Subject,
    judge: str,
    *,
    speed: float | None = None,
    price: tuple[float, float] | None = None,
    judge_batch: bool = False,
) -> Cost:
    """Add up what the steps take.

    Args:
        steps: The steps that have not ended.
        subject: Who answers.
        judge: Who judges.
        speed: Tokens per second that the subject generates; None takes what is known.
        price: Dollars per million tokens that the judge reads and writes; None likewise. A further
            judge whose price is not known is taken at the same.
        judge_batch: Whether the judge is asked in batches, where a step can wait for them.
    """
    own = [step for step in steps if not step.judges]
    found = Cost.of(
        subject,
        judge,
        generations=sum(step.generations for step in steps),
        generated=sum(step.generations * _longest(step, subject) for step in steps),
        verdicts=sum(step.verdicts for step in own),
        readings=sum(step.readings for step in steps),
        speed=speed or TOKENS_PER_SECOND.get(subject.name),
        price=price,
        batched=sum(step.verdicts for step in own if judge_batch and can_wait(step)),
    )
    for step in steps:
        for other in step.judges:
            each = step.verdicts // len(step.judges)
            theirs = price_of(other) or price
            found = found.plus_verdicts(
                Cost.of(subject, other, generations=0, generated=0, verdicts=each, price=theirs)
            )
    return found


def _longest(step: Step, subject: Subject) -> int:
    if step.task == "calibrate":
        # A search asks for responses of this length whatever --max-tokens says.
        return calibration_prior(subject).max_tokens
    return subject.max_tokens


def estimate_table(
    title: str,
    steps: Sequence[Step],
    done: Sequence[str],
    subject: Subject,
    judge: str,
    speed: float | None,
    price: tuple[float, float] | None,
    judge_batch: bool = False,
) -> Table:
    """One row for each step and the sum of those that are still to do.

    Args:
        title: What the run is.
        steps: All steps.
        done: Keys of those that have ended.
        subject: Who answers.
        judge: Who judges.
        speed: See `estimate`.
        price: See `estimate`.
        judge_batch: See `estimate`.
    """

    def cells(some: Sequence[Step]) -> tuple[str, ...]:
        found = estimate(some, subject, judge, speed=speed, price=price, judge_batch=judge_batch)
        return _cells(found)

    table = Table(
        title=title,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption="A calibration round in which nothing can be judged is repeated, at most "
        f"{MAX_EMPTY_ROUNDS} times a latent, and a judge is asked again after a reply that cannot "
        "be used: both come on top.",
    )
    table.add_column("step", no_wrap=True)
    columns = ("responses", "tokens", "judge\ncalls", "judge\ntokens", "hours", "dollars")
    for column in columns:
        table.add_column(column, justify="right")
    for step in steps:
        if step.key in done:
            table.add_row(step.key, "done", *[""] * (len(columns) - 1))
            continue
        table.add_row(step.key, *cells([step]))
    table.add_section()
    rest = [step for step in steps if step.key not in done]
    table.add_row("to do", *cells(rest))
    return table


def batch_note(judge: str) -> str:
    """What asking in batches changes: price and time.

    Args:
        judge: Who is asked so.
    """
    rate = batch_rate(judge)
    price = (
        f"at {100 * rate:.0f} % of the list price"
        if rate is not None and rate < 1
        else "counted at the list price, as its provider's reduction differs by model"
    )
    return (
        f"Verdicts are asked for in batches, {price}: answers can take up to {BATCH_HOURS} hours, "
        "and mostly take one. Calibrations, which wait for every round, and further judges are "
        "asked one by one."
    )


def _cells(found: Cost) -> tuple[str, ...]:
    return (
        _short(found.generations),
        _short(found.generated + found.read),
        _short(found.verdicts),
        _short(found.judge_read + found.judge_written),
        "?" if found.hours is None else _exact(found.hours),
        "?" if found.dollars is None else _exact(found.dollars),
    )


def _short(number: int) -> str:
    """At most seven characters, so that a row fits 80 columns."""
    if number < 100_000:
        return f"{number:,}"
    return f"{number / 1e3:,.0f} k" if number < 10_000_000 else f"{number / 1e6:,.1f} M"


def _exact(number: float) -> str:
    return f"{number:,.2f}" if number < 1_000 else f"{number:,.0f}"
