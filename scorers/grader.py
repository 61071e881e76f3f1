"""Which model grades, and its verdict on the attempts of a response."""

import os
from collections.abc import Callable
from typing import NamedTuple

from inspect_ai.model import Model, ModelOutput, get_model, model_roles

from esr_eval.errors import EsrError
from esr_eval.scorers.asking import QUOTES_REMINDER, Answered, ask_for
from esr_eval.scorers.outputs import Reason
from esr_eval.scorers.parsing import Attempt, Located, place_output
from esr_eval.scorers.rubric import GRADER_CONFIG, render
from esr_eval.scorers.secrets import without_secrets
from esr_eval.subjects import PAPER_GRADER, find_subject

__all__ = [
    "GRADER_ROLE",
    "Answered",
    "Verdict",
    "ask",
    "ask_for",
    "default_grader",
    "grader_model",
    "judge_model",
]

GRADER_ROLE = "grader"
_OTHER_JUDGES = "choose another judge with --model-role grader=PROVIDER/MODEL"


class Verdict(NamedTuple):
    """What the grader found, or why it found nothing that can be used."""

    attempts: list[Attempt] | None
    reason: Reason | None
    problem: str
    retries: int
    lenient: int = 0
    """Quotes that were found only by passing over more than case, spaces and markdown."""


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
    return _checked(name, lambda: get_model(role=GRADER_ROLE, default=name))


def judge_model(name: str) -> Model:
    """A judge by its name, PROVIDER/MODEL, or by the role that it is bound to.

    Args:
        name: Such as "openai/gpt-5-mini", or "second" with `--model-role second=...`.

    Raises:
        EsrError: The judge cannot be built, or the role is not bound.
    """
    return _checked(name, lambda: get_model(name) if "/" in name else _bound(name))


def _bound(role: str) -> Model:
    if role not in model_roles():
        raise EsrError(
            f"'{role}' is no judge: give PROVIDER/MODEL, or bind it with --model-role {role}="
            "PROVIDER/MODEL."
        )
    return get_model(role=role, required=True)


def _checked(name: str, build: Callable[[], Model]) -> Model:
    try:
        grader = build()
    except EsrError:
        raise
    except Exception as error:
        # Every provider raises errors of its own; Inspect's are many lines long and not public.
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
    said = without_secrets(str(error))
    first_line = next((line.strip() for line in said.splitlines() if line.strip()), "")
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

    def parse(output: ModelOutput) -> Located:
        return place_output(output, response)

    messages = render(task, label, response)
    found: Answered[Located] = await ask_for(
        grader, messages, parse, GRADER_CONFIG, reminder=QUOTES_REMINDER
    )
    if found.value is None:
        return Verdict(None, found.reason, found.problem, found.retries)
    attempts, lenient = found.value
    return Verdict(attempts, None, "", found.retries, lenient)
