"""Numbers in words."""

import math

from esr_eval.logs.measures import Measured
from esr_eval.report.intervals import with_interval

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
