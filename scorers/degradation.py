"""Degraded output: the same word five times running.

Source: the protocol's measure of degradation (a word of two or more characters, five or more times
in a row); rates are reported with and without such trials.
"""

import re
from collections.abc import Iterable

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.metrics import NAN, keyed_metrics
from esr_eval.scorers.trials import errored

RUN = 5
"""Repetitions in a row that make an output degraded (the protocol's number)."""

_TOKEN = re.compile(r"\w+(?:['’]\w+)*")


@scorer(metrics=keyed_metrics(["degraded"]))
def degradation() -> Scorer:
    """Whether the response is degraded; needs no grader."""

    async def score(state: TaskState, target: Target) -> Score:
        failed = errored() is not None
        value = NAN if failed else float(is_degraded(state.output.completion))
        return Score(value={"degraded": value}, answer="errored" if failed else None)

    return score


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
