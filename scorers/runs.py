"""Runs of one word."""

import re
from collections.abc import Iterable

RUN = 5
"""Repetitions in a row that make an output degraded (the protocol's number)."""

_TOKEN = re.compile(r"\w+(?:['’]\w+)*")


def longest_run(words: Iterable[str]) -> int:
    """Length of the longest run of one word of two or more characters."""
    longest = run = 0
    previous = None
    for word in words:
        run = run + 1 if word == previous else 1
        previous = word
        if len(word) > 1:
            longest = max(longest, run)
    return longest


def is_degraded(response: str) -> bool:
    """Whether a word stands five times in a row, whatever its case and the punctuation between."""
    return longest_run(match[0].casefold() for match in _TOKEN.finditer(response)) >= RUN
