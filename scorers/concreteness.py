"""How concrete the labels of latents are, 0-100, by a judge (paper, choice of latents: 65 and up).

Labels are asked about in batches. Answers are kept in Inspect's cache, so that a run that was
interrupted asks only for the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

from inspect_ai.model import CachePolicy, Model, ModelOutput
from inspect_ai.util import collect

from esr_eval.errors import EsrError
from esr_eval.scorers.asking import Answered, ask_for
from esr_eval.scorers.concreteness_rubric import BATCH, CONFIG, Batch, parse_output, render
from esr_eval.scorers.outputs import Reason
from esr_eval.scorers.scale import warn_of_scale

CACHE = CachePolicy(expiry=None, per_epoch=False)
"""Ratings do not go out of date: judge, wording and labels are part of the key."""


class Rating(NamedTuple):
    """A label's concreteness from 0 to 100; None with the reason where there is no usable one."""

    label: str
    score: float | None
    reason: Reason | None


async def rate_concreteness(
    grader: Model, labels: Sequence[str], *, cache: bool | CachePolicy = CACHE
) -> list[Rating]:
    """Rate labels; those that an answer leaves out, or rates unusably, are asked about once more.

    Args:
        grader: Who rates.
        labels: What to rate; the same label twice is asked about once.
        cache: Inspect's cache; False asks anew.

    Returns:
        One rating for each label, in their order.

    Raises:
        EsrError: The grader cannot work at all.
    """
    distinct = list(dict.fromkeys(labels))
    scores, reasons = await _rate_all(grader, distinct, cache)
    missing = [label for label in distinct if label not in scores]
    if missing:
        more, reasons = await _rate_all(grader, missing, cache)
        scores |= more
    warn_of_scale(list(scores.values()), str(grader))
    return [Rating(label, scores.get(label), reasons.get(label)) for label in labels]


async def _rate_all(grader: Model, labels: Sequence[str], cache: bool | CachePolicy) -> Batch:
    batches = [labels[at : at + BATCH] for at in range(0, len(labels), BATCH)]
    try:
        found = await collect(*(_rate_batch(grader, batch, cache) for batch in batches))
    except ExceptionGroup as group:
        # Batches that fail together: what keeps the judge from working is the same for all.
        told = group.subgroup(EsrError)
        raise group if told is None else told.exceptions[0] from None
    scores: dict[str, float] = {}
    reasons: dict[str, Reason] = {}
    for batch in found:
        scores |= batch.scores
        reasons |= batch.reasons
    return Batch(scores, reasons)


async def _rate_batch(grader: Model, labels: Sequence[str], cache: bool | CachePolicy) -> Batch:
    def parse(output: ModelOutput) -> Batch:
        return parse_output(output, labels)

    found: Answered[Batch] = await ask_for(grader, render(labels), parse, CONFIG, cache=cache)
    if found.value is not None:
        return found.value
    assert found.reason is not None
    return Batch({}, dict.fromkeys(labels, found.reason))
