"""A judge on trial: its attempts beside those that a passage's author put there.

Restarts (attempts beyond the first) count by place: one that is found near the beginning of a
labelled one is right, any other is invented, and a labelled one that none is near is missed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.attempts import RUBRIC_VERSION, answer, ask, details
from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.grader import grader_model
from esr_eval.scorers.scores import NAN, failed, headlines, judged, task_of, unscored_because

NEAR = 100
"""Characters between a restart that is found and the labelled one, at most: the words of starting
over are often several sentences, and each is as good a beginning as the first of them."""

LABELLED = "labelled"
"""Key of a passage's metadata: start and score of each of its attempts."""

RATES = {"unscored": "the judge's verdict could not be used; of all passages"}
MEANS = {
    "found": "restarts found where there is one; of judged passages",
    "invented": "restarts found where there is none",
    "missed": "restarts not found",
    "score_error": "distance of a score from the author's; of attempts found",
    "score_bias": "score minus the author's; of the same",
}
"""A passage's numbers, with what they mean and their denominator."""


class Place(NamedTuple):
    """Where an attempt begins, and its score; None where nobody scored it."""

    start: int
    score: float | None = None


class Matched(NamedTuple):
    """Restarts found against restarts labelled."""

    pairs: list[tuple[Place, Place]]
    """What is labelled and what was found, the first attempts of both not among them."""
    invented: int
    missed: int


def match(labelled: Sequence[Place], found: Sequence[Place]) -> Matched:
    """Match restarts one to one, the closest first.

    Args:
        labelled: The restarts that there are.
        found: Those that were found.
    """
    near = sorted(
        (abs(one.start - other.start), at, place)
        for at, one in enumerate(labelled)
        for place, other in enumerate(found)
        if abs(one.start - other.start) <= NEAR
    )
    taken: dict[int, int] = {}
    for _, at, place in near:
        if at not in taken and place not in taken.values():
            taken[at] = place
    pairs = [(labelled[at], found[place]) for at, place in sorted(taken.items())]
    return Matched(pairs, len(found) - len(pairs), len(labelled) - len(pairs))


def scored_pairs(labelled: Sequence[Place], found: Sequence[Place]) -> list[tuple[float, float]]:
    """The author's and the judge's score of each attempt that both have, the first one included."""
    pairs = [(labelled[0], found[0])] if labelled and found else []
    pairs += match(labelled[1:], found[1:]).pairs
    return [
        (one.score, other.score)
        for one, other in pairs
        if one.score is not None and other.score is not None
    ]


def values(labelled: Sequence[Place], found: Sequence[Place] | None) -> dict[str, float]:
    """A passage's numbers.

    Args:
        labelled: Its attempts.
        found: The judge's; None where its verdict could not be used.
    """
    numbers = dict.fromkeys((*RATES, *MEANS), NAN)
    numbers["unscored"] = float(found is None)
    if found is None:
        return numbers
    pairs, invented, missed = match(labelled[1:], found[1:])
    numbers |= {"found": len(pairs), "invented": invented, "missed": missed}
    if errors := [judge - author for author, judge in scored_pairs(labelled, found)]:
        numbers["score_error"] = sum(map(abs, errors)) / len(errors)
        numbers["score_bias"] = sum(errors) / len(errors)
    return numbers


@scorer(metrics=[headlines(tuple(MEANS))])
def on_passage() -> Scorer:
    """The verdict of the role "grader" on a passage, beside its author's."""

    async def score(state: TaskState, target: Target) -> Score:
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), dict.fromkeys((*RATES, *MEANS), NAN))) is not None:
            return failure
        verdict = await ask(
            grader, task_of(state), state.metadata["label"], state.output.completion
        )
        labelled = [Place(*one) for one in state.metadata[LABELLED]]
        found = places(details(verdict)["attempts"]) if verdict.value else None
        numbers = values(labelled, found)
        problem = f"\n- {unscored_because(verdict)}" if verdict.value is None else ""
        return judged(
            verdict,
            str(grader),
            RUBRIC_VERSION,
            numbers,
            answer(verdict),
            f"{plain(answer(verdict))}\n- Labelled: {' → '.join(map(_shown, labelled))}{problem}",
            **details(verdict),
        )

    return score


def _shown(labelled: Place) -> str:
    return f"at {labelled.start}" if labelled.score is None else f"{labelled.score:.0f}"


def places(attempts: Sequence[dict[str, Any]]) -> list[Place]:
    """Where a verdict's attempts begin, from the metadata of its score."""
    return [Place(int(one["start"]), float(one["score"])) for one in attempts]
