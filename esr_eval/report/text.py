"""Numbers in words."""

import math

from esr_eval.logs.measures import Measured


def with_interval(
    value: float,
    low: float | None,
    high: float | None,
    form: str,
    unit: str = "",
    scale: float = 1,
) -> str:
    """A number and, where there is one, its interval, such as `7.4 % (6.6 to 8.3)`.

    Parentheses, since rich reads square brackets as markup.

    Args:
        value: The number.
        low: Lower bound; None or NaN where there is none.
        high: Upper bound.
        form: How all three are formatted.
        unit: What stands behind the number.
        scale: What all three are multiplied by, 100 for percent.
    """
    text = f"{scale * value:{form}}{unit}"
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return text
    return f"{text} ({scale * low:{form}} to {scale * high:{form}})"


NONE = "–"


def percent(measured: Measured | None) -> str:
    """A rate in percent, such as `7.4 % (6.6 to 8.3)`."""
    if measured is None:
        return NONE
    return with_interval(measured.value, measured.low, measured.high, ".1f", " %", 100)


def mean(measured: Measured | None) -> str:
    """A mean score, such as `26.3 (25.1 to 27.5)`."""
    if measured is None:
        return NONE
    return with_interval(measured.value, measured.low, measured.high, ".1f")


def p_value(value: float | None) -> str:
    """A p value, never rounded to 0."""
    if value is None or math.isnan(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def certainty(value: float | None) -> str:
    """A corrected p value as a phrase: `p = 0.012`, `p < 0.001`, or that there is no test."""
    told = p_value(value)
    return "no test" if told == NONE else f"p {told if told.startswith('<') else f'= {told}'}"


def count(number: int, noun: str) -> str:
    """A number and what it counts: `1 trial`, `2,400 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
