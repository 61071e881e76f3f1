"""Degraded output: the same word five times running.

Source: the protocol's measure of degradation (a word of two or more characters, five or more times
in a row); rates are reported with and without such trials.
"""

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.metrics import rate_interval
from esr_eval.scorers.runs import is_degraded
from esr_eval.scorers.trials import errored


@scorer(metrics={"degraded": [mean(), rate_interval(cluster="latent")]})
def degradation() -> Scorer:
    """Whether the response is degraded; needs no grader."""

    async def score(state: TaskState, target: Target) -> Score:
        failed = errored(state) is not None
        value = float("nan") if failed else float(is_degraded(state.output.completion))
        return Score(value={"degraded": value}, answer="errored" if failed else None)

    return score
