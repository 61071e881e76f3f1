"""A model's chat template: its variables, its day, and what it refuses."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from esr_eval.errors import EsrError
from esr_eval.model.answers import CHANNEL
from esr_eval.spec import TEMPLATE_DAY, Runtime

THINKING = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
"""Variables by which templates turn thinking on and off; the one there is is off unless asked."""
GIVEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"}
)
"""What a template gets from whoever renders it, so that it is nobody's to set."""
DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", *"aAbBcdeDFHIjmMpRSTuUwWxXyYzZ", "%")
"""Of dates in C's form."""
DATE_NOW, DATE_STRING = "strftime_now", "date_string"
_OTHERS_TAGS = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
"""Tags of transformers' own, which mark what was generated and write nothing."""
_SENT = "SENTINEL"


class Settings(NamedTuple):
    """How a chat template is rendered.

    Attributes:
        template: Its text, to which only one day exists.
        variables: What it gets beside the conversation.
        told: The same as the log says it: what decides the prompt beside the conversation.
    """

    template: str
    variables: dict[str, Any]
    told: dict[str, str]


def template_settings(runtime: Runtime, template: str) -> Settings:
    """Variables of a chat template: the ones asked for, thinking off, and one fixed day.

    Args:
        runtime: Says what was asked for.
        template: The template's text.

    Raises:
        EsrError: A variable was set that the template does not have.
    """
    known = template_variables(template)
    own = sorted(name for name in known - GIVEN if not name.endswith("_token"))
    asked = dict(runtime.template_args or {})
    for name in asked:
        if name not in own:
            raise EsrError(
                f"The chat template of {runtime.subject} has no variable '{name}' to set; "
                f"it has: {', '.join(own) or 'none'}. Drop it from -M."
            )
    variables: dict[str, Any] = {n: False for n in THINKING if n in known} | asked
    told = {name: str(value) for name, value in sorted(variables.items())}
    day = datetime.datetime.combine(runtime.date, datetime.time())
    if DATE_NOW in known:
        template = _no_other_day(day) + template
        told["date"] = runtime.date.isoformat()
    if runtime.date != TEMPLATE_DAY:
        if DATE_STRING in known and DATE_STRING not in asked:
            variables[DATE_STRING] = day.strftime("%d %b %Y")
            told["date"] = runtime.date.isoformat()
        if "date" not in told:
            raise EsrError(f"The chat template of {runtime.subject} writes no date: drop -M date=.")
    return Settings(template, variables, told)


def _no_other_day(day: datetime.datetime) -> str:
    """What stands before a template in which it is always one day.

    transformers gives templates a function that tells today's date, and lets nobody pass another:
    a macro of that name takes its place.
    """
    form = "format"
    for directive in DIRECTIVES:
        text = json.dumps(day.strftime(f"%{directive}"))
        form += f'|replace("%{directive}", {text})'
    # The line's end goes with the block, so that the template begins at a line's beginning.
    return f"{{% macro {DATE_NOW}(format) %}}{{{{ {form} }}}}{{% endmacro %}}\n"


def template_variables(template: str) -> frozenset[str]:
    """Names that a chat template takes from outside; none where it is no template."""
    environment = ImmutableSandboxedEnvironment(extensions=[loopcontrols])
    try:
        parsed = environment.parse(_OTHERS_TAGS.sub("", template))
    except TemplateError:  # rendering it will say why
        return frozenset()
    return frozenset(meta.find_undeclared_variables(parsed))


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    settings: Settings,
    subject: str,
    answering: bool = True,
) -> str:
    """A conversation as the model reads it.

    Args:
        tokenizer: Has the template.
        messages: The conversation.
        settings: How the template is rendered.
        subject: The model's name in messages.
        answering: Whether the model's answer comes next.

    Raises:
        EsrError: The template refuses the conversation, or leaves a system message out.
    """
    roles = ", ".join(message["role"] for message in messages)
    try:
        text = str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=answering,
                chat_template=settings.template,
                **settings.variables,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise EsrError(
            f"The chat template of {subject} refuses a conversation of the roles {roles}: {said}."
        ) from error
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in text:
            raise EsrError(
                f"The chat template of {subject} leaves the system message out: put it into the "
                "user message."
            )
    return text


def turn_end(tokenizer: Any, settings: Settings, ends: Sequence[int]) -> int | None:
    """The token by which the chat template ends an answer, where no known end does.

    It is what the template writes right behind the text of an assistant's message, if that is one
    token of the vocabulary's added ones, and it stands nowhere else within the answer.

    Args:
        tokenizer: Has the template.
        settings: How the template is rendered.
        ends: Ids that are known to end a response.
    """
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _SENT}]
    try:
        whole = render(tokenizer, chat, settings, "it", answering=False)
        before, found, after = whole.partition(_SENT)
        asked = render(tokenizer, chat[:1], settings, "it")
    except EsrError:
        return None
    if not found or _SENT in after:
        return None
    added = tokenizer.added_tokens_decoder
    behind = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    if not behind or behind[0] not in added or set(behind) & set(ends):
        return None
    # What the template writes between the question and the text is part of the answer, too: a
    # token that ends each of several parts (a plan, then the answer) does not end the response.
    header = before[len(asked) :] if before.startswith(asked) else ""
    inside = tokenizer(header, add_special_tokens=False)["input_ids"]
    return None if CHANNEL in header or behind[0] in inside else int(behind[0])
