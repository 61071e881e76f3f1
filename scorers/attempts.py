"""The main scorer: a grader splits the response into attempts and scores each of them."""

from typing import Any

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.explain import Judged, answer, explain
from esr_eval.scorers.grader import Verdict, ask, grader_model
from esr_eval.scorers.phrases import find_restarts
from esr_eval.scorers.rubric import RUBRIC_VERSION
from esr_eval.scorers.runs import is_degraded
from esr_eval.scorers.trials import failed, task_of, trial_of
from esr_eval.scorers.values import Outcome, metrics, values


@scorer(metrics=metrics())
def attempts() -> Scorer:
    """Attempts and their scores 0-100, by the model bound to the role "grader".

    The keys of a score, and the denominators of their rates, are in `esr_eval.scorers.values`.
    Trials whose verdict cannot be used are counted as `unscored` with a reason, never guessed;
    trials that failed are counted as `errored` when the task sets `score_on_error=True`.
    """

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None))) is not None:
            return failure
        response = state.output.completion
        restarts = find_restarts(response)
        degraded = is_degraded(response)
        verdict = (
            await ask(grader, task_of(state), trial.label, response)
            if response.strip()
            else Verdict(attempts=[], reason=None, problem="", retries=0)
        )
        scores = None if verdict.attempts is None else [found.score for found in verdict.attempts]
        judged = Judged(trial, response, str(grader), verdict, restarts, degraded)
        return Score(
            value=values(Outcome(scores, len(restarts), degraded)),
            answer=answer(verdict),
            explanation=explain(judged),
            reason=None if scores is not None else "grader_failed",
            metadata=_details(judged),
        )

    return score


def _details(judged: Judged) -> dict[str, Any]:
    """What tables and later analyses need, and no more: the log holds it twice."""
    verdict = judged.verdict
    return {
        "judge": judged.judge,
        "rubric": RUBRIC_VERSION,
        "attempts": [found._asdict() for found in verdict.attempts or []],
        "restarts": [found._asdict() for found in judged.restarts[:20]],
        "retries": verdict.retries,
        "lenient": verdict.lenient,
        "unscored_because": verdict.reason,
    }
