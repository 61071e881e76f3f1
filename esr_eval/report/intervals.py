"""Numbers with their intervals, in words."""

import math


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
