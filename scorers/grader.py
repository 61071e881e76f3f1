"""Which model grades, and the one request (with one retry) that it gets."""

import os
from typing import NamedTuple

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.util import LimitExceededError

from esr_eval.errors import EsrError
from esr_eval.scorers.parsing import Attempt, Reason, Rejected, parse_output
from esr_eval.scorers.rubric import GRADER_CONFIG, MAX_TOKENS, render
from esr_eval.subjects import PAPER_GRADER, find_subject

GRADER_ROLE = "grader"
_OTHER_JUDGES = "choose another judge with --model-role grader=PROVIDER/MODEL"


class Verdict(NamedTuple):
    """What the grader found, or why it found nothing that can be used."""

    attempts: list[Attempt] | None
    reason: Reason | None
    problem: str
    retries: int


def default_grader(model: str) -> str:
    """The grader that belongs to a subject; the judge of record for any other model.

    Args:
        model: The evaluated model's name, e.g. "esr/smollm2-135m".
    """
    provider, _, name = model.partition("/")
    if provider == "esr":
        try:
            return find_subject(name).grader
        except EsrError:
            # A stored log may name a subject that exists no more; it can still be judged.
            return PAPER_GRADER
    return PAPER_GRADER


def grader_model(model: str) -> Model:
    """The model bound to the role "grader", or the subject's default.

    Needs no network. Tasks call it before weights load, so that a missing key is told at once.

    Args:
        model: The evaluated model's name.

    Raises:
        EsrError: The grader cannot be built, with the reason and the way out in one sentence.
    """
    name = default_grader(model)
    try:
        grader = get_model(role=GRADER_ROLE, default=name)
    except EsrError:
        raise
    except Exception as error:
        # Inspect's own errors for a missing key or package are many lines long.
        raise EsrError(_why_not(name, error)) from None
    if getattr(grader.api, "api_key", None) == "":
        # An empty variable passes for a key until the first request is refused.
        raise EsrError(_no_key(str(grader)))
    ready = getattr(grader.api, "check_ready", None)
    if callable(ready):
        ready()
    return grader


def _why_not(name: str, error: Exception) -> str:
    if _key_variable(name) in str(error) and not os.environ.get(_key_variable(name)):
        return _no_key(name)
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        f"The judge {name} cannot be used ({first_line or type(error).__name__}): {_OTHER_JUDGES}."
    )


def _key_variable(name: str) -> str:
    return f"{name.partition('/')[0].upper()}_API_KEY"


def _no_key(name: str) -> str:
    return (
        f"The judge {name} needs an API key: set {_key_variable(name)}, or {_OTHER_JUDGES} "
        "(esr-judge/offline needs none, but measures only topicality)."
    )


async def ask(grader: Model, task: str, label: str, response: str) -> Verdict:
    """Get a verdict on one response; a verdict that cannot be used is asked for once more.

    Raises:
        EsrError: The grader cannot work at all (say, its package is missing).
        LimitExceededError: The sample's own limits were reached.
    """
    messages = render(task, label, response)
    # A limit set on the grader itself (a reasoning model needs a higher one) is respected.
    room = grader.config.max_tokens or MAX_TOKENS
    config = GRADER_CONFIG.model_copy(update={"max_tokens": room})
    try:
        return Verdict(await _once(grader, messages, config, response), None, "", 0)
    except _Unusable as first:
        messages = [*messages, *first.follow_up()]
        config = first.relax(config)
    try:
        return Verdict(await _once(grader, messages, config, response), None, "", 1)
    except _Unusable as second:
        return Verdict(None, second.why.reason, second.why.problem, 1)


class _Unusable(Exception):  # noqa: N818 - an outcome that is passed on, not a fault
    def __init__(self, why: Rejected, answer: str | None) -> None:
        super().__init__(why.problem)
        self.why = why
        self.answer = answer

    def follow_up(self) -> list[ChatMessage]:
        if self.answer is None:
            return []
        return [
            ChatMessageAssistant(content=self.answer or "(no answer)"),
            ChatMessageUser(
                content=f"That could not be used: {self.why.problem}. Answer again with the JSON "
                "object only; copy the quotes letter by letter from between the fence lines."
            ),
        ]

    def relax(self, config: GenerateConfig) -> GenerateConfig:
        if self.why.reason == "truncated":
            return config.model_copy(update={"max_tokens": 4 * (config.max_tokens or MAX_TOKENS)})
        if self.why.reason == "grader_error":
            # Some hosted models refuse every request that carries a schema.
            return config.model_copy(update={"response_schema": None})
        return config


async def _once(
    grader: Model, messages: list[ChatMessage], config: GenerateConfig, response: str
) -> list[Attempt]:
    try:
        output = await grader.generate(messages, config=config)
    except (EsrError, LimitExceededError):
        raise
    except Exception as error:
        # Whatever a provider raises, the trial is counted as unscored, with this reason.
        detail = (str(error).strip().splitlines() or [""])[-1][:200]
        why = Rejected("grader_error", f"{type(error).__name__}: {detail}")
        raise _Unusable(why, None) from error
    try:
        return parse_output(output, response)
    except Rejected as why:
        raise _Unusable(why, output.completion) from None
