"""Degradation: text that only repeats itself. No judge is asked.

Degraded is a response with a word of two or more characters five or more times in a row, as in the
protocol; rates are reported with and without such trials.
"""

import re
from collections.abc import Iterable
from itertools import groupby

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.scores import NAN, errored, keyed_metrics

RUN = 5
"""Repetitions in a row that make an output degraded (the protocol's number)."""

_REPEATED = re.compile(r"\w+(?:['’]\w+)*")


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
    return max((len(list(run)) for word, run in groupby(words) if len(word) > 1), default=0)


def is_degraded(response: str) -> bool:
    """Whether a word stands five times in a row, whatever its case and the punctuation between."""
    return longest_run(match[0].casefold() for match in _REPEATED.finditer(response)) >= RUN
