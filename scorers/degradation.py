"""Degraded output: the same word five times running.

Source: the protocol's measure of degradation (a word of two or more characters, five or more times
in a row); rates are reported with and without such trials.
"""

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.keyed import NAN, keyed_metrics
from esr_eval.scorers.runs import is_degraded
from esr_eval.scorers.trials import errored


@scorer(metrics=keyed_metrics(["degraded"]))
def degradation() -> Scorer:
    """Whether the response is degraded; needs no grader."""

    async def score(state: TaskState, target: Target) -> Score:
        failed = errored() is not None
        value = NAN if failed else float(is_degraded(state.output.completion))
        return Score(value={"degraded": value}, answer="errored" if failed else None)

    return score
