"""The judge's own reliability: a share of the responses is judged again, blind.

Two questions are asked of the same judge. Of the whole response, anew: how far do two of its
verdicts on one text differ? And where it found several attempts, of each of them as a response of
its own, in shuffled order and without the words of starting over: is the last still better than the
first, when nothing tells which came later?

The second verdict comes from no cache, and nothing says that it is the second. Its fence is another
one than the first's. Judges are asked at temperature 0, where the same words give nearly the same
verdict again; a fence that means nothing, and must change nothing, shows how far a verdict hangs on
more than the response. A judge that is a fixed function of the response repeats itself all the
same: that it does says nothing of whether it is right.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, cast

from inspect_ai.model import Model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState

from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import RUBRIC_VERSION, Attempt, Verdict, ask, scores_of
from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.grader import Answered, Request, grader_model
from esr_eval.scorers.phrases import find_restarts
from esr_eval.scorers.scores import (
    NAN,
    defined,
    failed,
    headlines,
    judged,
    task_of,
    trial_of,
    unscored_because,
)

MOST_ALONE = 6
"""Attempts of one response that are judged alone: the first ones, and the last."""

QUESTIONS = 3
"""Questions a response takes that is judged again, as runs estimate it: the whole, and where there
are several attempts, most often two."""

RATES = {
    "rejudged": "judged again; of all trials that did not fail",
    "agrees": "both verdicts find several attempts, or neither does; of trials judged twice",
    "flipped": "the last attempt does not score above the first when each is judged alone; of "
    "trials judged again whose last attempt scored above the first",
    "unusable": "a new verdict could not be used; of trials judged again",
}
"""Values of 0 or 1, with what they mean and their denominator."""

MEANS = {
    "drift": "first score of the new verdict minus that of the old; of trials judged twice",
    "variance": "half of its square: the mean is the variance of one score; of the same trials",
    "change_alone": "last score minus first, each judged alone; of multi-attempt trials judged "
    "again",
}
"""Other numbers, with what they mean and their denominator."""


@metric
def deviations(cluster: str = "latent") -> Metric:
    """Root of the mean of variances, with the roots of its 95 % interval.

    Args:
        cluster: Key of the sample metadata that names the cluster.
    """

    def compute(scores: list[SampleScore]) -> Value:
        known = defined(scores, "variance")
        clusters = [str((one.sample_metadata or {}).get(cluster)) for one, _ in known]
        found = deviation([variance for _, variance in known], clusters)
        named = zip(("sd", "sd_low", "sd_high"), found, strict=True)
        return {name: value for name, value in named if value is not None}

    return cast(Metric, compute)


def deviation(
    variances: Sequence[float], clusters: Sequence[str]
) -> tuple[float, float | None, float | None]:
    """The standard deviation of one score, from half the squares of repeated scores' differences.

    Args:
        variances: One for each pair of scores.
        clusters: The cluster (latent) of each.

    Returns:
        The deviation and its 95 % interval; no bounds from fewer than two clusters.
    """
    # Here, for scipy is slow to load and every `inspect` command imports the scorers.
    from esr_eval.stats.means import clustered_mean

    if not variances:
        return NAN, None, None
    mean, low, high = clustered_mean(variances, clusters)
    if low is None or high is None:
        return math.sqrt(mean), None, None
    return math.sqrt(mean), math.sqrt(max(0.0, low)), math.sqrt(high)


def metrics() -> list[Metric]:
    """The few main numbers, the deviation of a score, and how many were judged again."""
    return [headlines(("agrees", "flipped", "drift"), ("rejudged", "unusable")), deviations()]


@scorer(metrics=metrics())
def reliability(share: float = 0.2, seed: int = 0) -> Scorer:
    """How far the judge of the role "grader" repeats itself, blind, on a share of the responses.

    The first verdict is that of the same judge in the sample's other scores, where there is one;
    else it is asked for here.

    Args:
        share: Of the responses, 0 to 1. Which they are depends on each one's id, epoch and the
            seed alone, never on its neighbours.
        seed: Of that choice, and of the order in which attempts are judged alone.

    Raises:
        EsrError: There is no such share.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise EsrError(f"-S share={share} is refused: it is a number from 0 to 1.")

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), dict.fromkeys((*RATES, *MEANS), NAN))) is not None:
            return failure
        request = Request(task_of(state), trial.label, state.output.completion)
        sample = f"{state.sample_id}:{state.epoch}"
        if not chosen(sample, share, seed) or not request.response.strip():
            return Score(
                value=values(None), answer="not judged again", metadata={"judge": str(grader)}
            )
        first = stored_verdict(state, str(grader))
        stored = first is not None
        if first is None:
            first = _attempts(await ask(grader, *_about(request)))
        again = await ask(grader, *_about(request), salt=f"again {seed} ")
        order = random.Random(f"reliability-{seed}-{sample}")  # noqa: S311 - no secret
        alone = await judge_alone(grader, request, first or [], order)
        outcome = Outcome(first, again, alone)
        return judged(
            again,
            str(grader),
            RUBRIC_VERSION,
            values(outcome),
            _answer(outcome),
            _explain(outcome),
            first=_scores(first),
            again=scores_of(again),
            alone=[scores_of(one) for one in alone],
            first_from_log=stored,
        )

    return score


class Outcome(NamedTuple):
    """What is known of a response that was judged again."""

    first: list[Attempt] | None
    """The first verdict; None when it could not be used."""
    again: Answered[Verdict]
    alone: list[Answered[Verdict]]
    """Verdicts on its attempts, in their order in the response; none where it has but one."""


def chosen(sample: str, share: float, seed: int) -> bool:
    """Whether a response is judged again: by its own name alone.

    Args:
        sample: What names it.
        share: Of all responses.
        seed: Of the choice.
    """
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def stored_verdict(state: TaskState, judge: str) -> list[Attempt] | None:
    """The same judge's verdict among the sample's scores; None where there is none to use."""
    for score in (state.scores or {}).values():
        details = score.metadata or {}
        if (
            isinstance(score.value, dict)
            and "multi_attempt" in score.value
            and score.value.get("unscored") == 0
            and details.get("judge") == judge
            and details.get("rubric") == RUBRIC_VERSION
        ):
            return [
                Attempt(one["start"], one["end"], one["score"])
                for one in details.get("attempts", [])
            ]
    return None


async def judge_alone(
    grader: Model, request: Request, attempts: Sequence[Attempt], order: random.Random
) -> list[Answered[Verdict]]:
    """Ask for a verdict on each attempt as if it were a response, in shuffled order.

    Args:
        grader: Whom to ask.
        request: The whole response.
        attempts: Its attempts; fewer than two have nothing to be told apart.
        order: Shuffles them.

    Returns:
        The verdicts, in the attempts' order.
    """
    if len(attempts) < 2:
        return []
    texts = texts_alone(request.response, attempts, request.task)
    if len(texts) > MOST_ALONE:
        texts = [*texts[: MOST_ALONE - 1], texts[-1]]
    places = list(range(len(texts)))
    order.shuffle(places)
    # One after another: the order would mean nothing otherwise.
    verdicts = {
        place: await ask(grader, *_about(request._replace(response=texts[place])))
        for place in places
    }
    return [verdicts[place] for place in range(len(texts))]


def texts_alone(response: str, attempts: Sequence[Attempt], task: str = "") -> list[str]:
    """Each attempt's text up to the next, without words of starting over at its beginning.

    These would tell that something came before. Only what the phrase detector knows is cut.
    """
    starts = [attempt.start for attempt in attempts]
    ends = [*starts[1:], attempts[-1].end]
    restarts = find_restarts(response, task)
    texts = []
    for start, end in zip(starts, ends, strict=True):
        text = response[start:end].strip()
        said = [one.end for one in restarts if start - _NEAR <= one.start <= start + _NEAR]
        content = response[max(said) : end].lstrip(_LEFT_OVER).rstrip() if said else ""
        texts.append(content or text)
    return texts


_NEAR = 20
"""Characters between an attempt's beginning and the restart that it begins with, at most."""
_LEFT_OVER = " \n\t.,:;!…–—-"


def values(outcome: Outcome | None) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that was not judged again."""
    numbers = dict.fromkeys((*RATES, *MEANS), NAN)
    numbers["rejudged"] = float(outcome is not None)
    if outcome is None:
        return numbers
    first, again, alone = outcome
    news = [again, *alone]
    numbers["unusable"] = float(any(one.value is None for one in news))
    once, twice = _scores(first), scores_of(again)
    if once is not None and twice is not None:
        numbers["agrees"] = float((len(once) > 1) == (len(twice) > 1))
        if once and twice:
            drift = twice[0] - once[0]
            numbers |= {"drift": drift, "variance": drift**2 / 2}
    if once is not None and len(once) > 1:
        change = _alone(alone[-1]) - _alone(alone[0])
        numbers["change_alone"] = change
        if once[-1] > once[0] and not math.isnan(change):
            numbers["flipped"] = float(change <= 0)
    return numbers


def _alone(verdict: Answered[Verdict]) -> float:
    """The score of an attempt judged alone: where it was split, the mean; NaN where nothing is."""
    scores = scores_of(verdict)
    return sum(scores) / len(scores) if scores else NAN


def _attempts(verdict: Answered[Verdict]) -> list[Attempt] | None:
    return verdict.value.attempts if verdict.value else None


def _scores(attempts: Sequence[Attempt] | None) -> list[float] | None:
    return None if attempts is None else [attempt.score for attempt in attempts]


def _about(request: Request) -> tuple[str, str, str]:
    return request.task, request.label, request.response


def _answer(outcome: Outcome) -> str:
    told = [_told(_scores(outcome.first)), _told(scores_of(outcome.again))]
    said = f"first {told[0]}, again {told[1]}"
    if outcome.alone:
        alone = [_alone(one) for one in outcome.alone]
        said += f", alone {_told(alone)}"
    return said


def _told(scores: Sequence[float] | None) -> str:
    if scores is None:
        return "unusable"
    shown = ["?" if math.isnan(score) else f"{score:.0f}" for score in scores]
    if len(shown) > MOST_ALONE:
        shown = [*shown[: MOST_ALONE - 1], "…", shown[-1]]
    return " → ".join(shown) or "no attempt"


def _explain(outcome: Outcome) -> str:
    lines = [plain(_answer(outcome), 400), ""]
    lines += [
        f"- {unscored_because(one)}" for one in (outcome.again, *outcome.alone) if one.value is None
    ]
    return "\n".join(lines)
