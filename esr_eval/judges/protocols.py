"""Which question the offline judge is asked, and who of its parts answers it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from inspect_ai.model import ChatMessage

from esr_eval.judges import concrete, courses, lexical, verdicts
from esr_eval.judges.topicality import Encoder
from esr_eval.scorers import concreteness_rubric, improvement_rubric, regions_rubric, rubric

Answer = Callable[[Encoder], str]

PROTOCOLS: tuple[tuple[Callable[[Sequence[ChatMessage]], Any], Callable[..., str]], ...] = (
    (rubric.parse_request, verdicts.verdict),
    (improvement_rubric.parse_request, courses.improvement),
    (regions_rubric.parse_request, courses.regions),
    (concreteness_rubric.parse_request, concrete.ratings),
)
"""What reads a question back, and what answers it: given the question and the encoder."""


def answer_to(messages: Sequence[ChatMessage]) -> Answer:
    """Find what answers the question in the messages.

    Raises:
        ValueError: They hold no question of any of the protocols.
    """
    for parse, answer in PROTOCOLS:
        try:
            return partial(answer, parse(messages))
        except ValueError:
            continue
    raise ValueError(
        "the messages hold none (on attempts, improvement, regions or concreteness, as in "
        "esr_eval.scorers)"
    )


def lexical_answer_to(messages: Sequence[ChatMessage]) -> Answer:
    """The same for the lexical judge, which knows attempts only.

    Raises:
        ValueError: The messages hold no question about attempts.
    """
    request = rubric.parse_request(messages)
    return lambda encoder: lexical.verdict(request)
