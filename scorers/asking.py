"""Ask a judge once, and once more if its answer was no use: the same for every protocol."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from inspect_ai.model import (
    CachePolicy,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
)
from inspect_ai.util import LimitExceededError

from esr_eval.errors import EsrError
from esr_eval.scorers.outputs import Reason, Rejected
from esr_eval.scorers.secrets import without_secrets

T = TypeVar("T")

QUOTES_REMINDER = (
    "Answer again with the JSON object only; copy the quotes letter by letter from between the "
    "fence lines."
)


class Answered(NamedTuple, Generic[T]):
    """An answer that can be used, or why there is none."""

    value: T | None
    reason: Reason | None
    problem: str
    retries: int


async def ask_for(
    grader: Model,
    messages: list[ChatMessage],
    parse: Callable[[ModelOutput], T],
    config: GenerateConfig,
    *,
    reminder: str = "Answer again with the JSON object only.",
    cache: bool | CachePolicy = False,
) -> Answered[T]:
    """Ask a grader whatever has an answer that can be parsed; once more if it cannot be used.

    The second request tells what was wrong; after a truncated answer it leaves more room, and
    after an error of the provider it carries no schema (some hosted models refuse every request
    that does).

    Args:
        grader: Whom to ask.
        messages: The question.
        parse: Turns the output into the answer, or raises `Rejected`.
        config: Settings of the request, `max_tokens` among them; a limit set on the grader itself
            (a reasoning model needs a higher one) comes first.
        reminder: What the second request says beside the problem.
        cache: Inspect's cache, for requests that another run may repeat.

    Raises:
        EsrError: The grader cannot work at all (say, its package is missing).
        LimitExceededError: The sample's own limits were reached.
    """
    room = grader.config.max_tokens or config.max_tokens
    config = config.model_copy(update={"max_tokens": room})
    try:
        return Answered(await _once(grader, messages, parse, config, cache), None, "", 0)
    except _Unusable as first:
        messages = [*messages, *first.follow_up(reminder)]
        config = first.relax(config)
    try:
        return Answered(await _once(grader, messages, parse, config, cache), None, "", 1)
    except _Unusable as second:
        return Answered(None, second.why.reason, second.why.problem, 1)


class _Unusable(Exception):  # noqa: N818 - an outcome that is passed on, not a fault
    def __init__(self, why: Rejected, answer: str | None) -> None:
        super().__init__(why.problem)
        self.why = why
        self.answer = answer

    def follow_up(self, reminder: str) -> list[ChatMessage]:
        if self.answer is None:
            return []
        return [
            ChatMessageAssistant(content=self.answer or "(no answer)"),
            ChatMessageUser(content=f"That could not be used: {self.why.problem}. {reminder}"),
        ]

    def relax(self, config: GenerateConfig) -> GenerateConfig:
        if self.why.reason == "truncated" and config.max_tokens:
            return config.model_copy(update={"max_tokens": 4 * config.max_tokens})
        if self.why.reason == "grader_error":
            return config.model_copy(update={"response_schema": None})
        return config


async def _once(
    grader: Model,
    messages: list[ChatMessage],
    parse: Callable[[ModelOutput], T],
    config: GenerateConfig,
    cache: bool | CachePolicy,
) -> T:
    try:
        output = await grader.generate(messages, config=config, cache=cache)
    except (EsrError, LimitExceededError):
        raise
    except Exception as error:
        # Whatever a provider raises, the trial is counted as unscored, with this reason.
        said = without_secrets(str(error), [getattr(grader.api, "api_key", None)])
        detail = (said.strip().splitlines() or [""])[-1][:200]
        why = Rejected("grader_error", f"{type(error).__name__}: {detail}")
        raise _Unusable(why, None) from error
    try:
        return parse(output)
    except Rejected as why:
        raise _Unusable(why, output.completion) from None
