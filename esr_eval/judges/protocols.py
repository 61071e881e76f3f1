"""Which question the offline judge is asked, and who of its parts answers it."""

from collections.abc import Callable, Sequence

from inspect_ai.model import ChatMessage

from esr_eval.judges import concrete, courses, lexical, verdicts
from esr_eval.judges.topicality import Encoder
from esr_eval.scorers import concreteness_rubric, improvement_rubric, regions_rubric, rubric

Answer = Callable[[Encoder], str]


def answer_to(messages: Sequence[ChatMessage]) -> Answer:
    """Find what answers the question in the messages.

    Raises:
        ValueError: They hold no question of any of the protocols.
    """
    for protocol in (_attempts, _improvement, _regions, _concreteness):
        try:
            return protocol(messages)
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


def _attempts(messages: Sequence[ChatMessage]) -> Answer:
    request = rubric.parse_request(messages)
    return lambda encoder: verdicts.verdict(request, encoder)


def _improvement(messages: Sequence[ChatMessage]) -> Answer:
    request = improvement_rubric.parse_request(messages)
    return lambda encoder: courses.improvement(request, encoder)


def _regions(messages: Sequence[ChatMessage]) -> Answer:
    request = regions_rubric.parse_request(messages)
    return lambda encoder: courses.regions(request, encoder)


def _concreteness(messages: Sequence[ChatMessage]) -> Answer:
    labels = concreteness_rubric.parse_request(messages)
    return lambda encoder: concrete.ratings(labels, encoder)
