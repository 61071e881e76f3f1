"""A model's chat: its template with variables and day, and its answers apart from its thoughts."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from esr_eval.errors import EsrError
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
PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
)
"""What stands before and after a model's thoughts."""
CHANNEL, MESSAGE, FINAL = "<|channel|>", "<|message|>", "final"
PARTS = ("<|start|>", "<|end|>", "<|return|>", "<|call|>")
"""Harmony, the format of gpt-oss: <|channel|>NAME<|message|>TEXT<|end|><|start|>assistant..."""
LOOKED_AT = 32
"""Tokens at a prompt's end in which it may have opened the model's thoughts."""
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


class Response(NamedTuple):
    """A response in its parts.

    Attributes:
        reasoning: What the model thought; empty where it did not.
        text: Its answer; empty where it never got to one.
    """

    reasoning: str
    text: str


def continued(tokenizer: Any, before: Sequence[int], tokens: Sequence[int]) -> str:
    """Text of tokens as they stand behind others, special tokens left out.

    Some tokenizers drop the first space of what they decode, and a character's bytes may lie on
    both sides: only decoded with what is before it does a text go on as it was.
    """
    head = _text(tokenizer, before)
    whole = _text(tokenizer, [*before, *tokens])
    shared = 0
    while shared < len(head) and head[shared] == whole[shared : shared + 1]:
        shared += 1
    return whole[shared:]


class Answers:
    """Takes a model's responses apart.

    Thoughts are known by the tags around them. Those that are tokens of their own (the ones that
    decoding leaves out as special among them) are found by their ids; spelled out, they count at
    the beginning of a response, and where the chat template or the vocabulary knows them.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        """Look up how this model marks its thoughts.

        Args:
            tokenizer: The model's own.
            template: Its chat template.
        """
        self._tokenizer = tokenizer
        self._added = {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
        self.channels = CHANNEL in self._added and MESSAGE in self._added
        self._known = [p for p in PAIRS if any(t in self._added or t in template for t in p)]
        names = {CHANNEL, MESSAGE, *PARTS} if self.channels else set()
        names |= {part for pair in PAIRS for part in pair}
        names |= {"<|channel>"}  # of "<|channel>thought"
        self._marks = {i: token for token, i in self._added.items() if token in names}

    def opened(self, prompt: Sequence[int]) -> tuple[str, str] | None:
        """The tags of thoughts that a prompt has begun and left open at its end."""
        tail = self._tokenizer.decode(list(prompt)[-LOOKED_AT:], skip_special_tokens=False)
        return next((pair for pair in PAIRS if str(tail).rstrip().endswith(pair[0])), None)

    def to_answer(self, prompt: str) -> str:
        """What a prompt needs at its end so that what comes next belongs to the answer."""
        if self.channels:
            return "" if prompt.endswith(MESSAGE) else f"{CHANNEL}{FINAL}{MESSAGE}"
        pair = next((pair for pair in PAIRS if prompt.rstrip().endswith(pair[0])), None)
        return "" if pair is None else f"\n{pair[1]}\n\n"

    def split(self, prompt: Sequence[int], tokens: Sequence[int], prefilled: bool) -> Response:
        """Take a response apart.

        Args:
            prompt: What the model answered.
            tokens: What it generated.
            prefilled: Whether the prompt ends in the beginning of the answer.
        """
        # Where the answer goes on from a beginning, so does its text.
        before = list(prompt) if prefilled else []
        pieces = self._pieces(before, tokens)
        marks = {piece.mark for piece in pieces}
        if self.channels and marks & {CHANNEL, MESSAGE}:
            return _by_channel(pieces, prefilled)
        tags = marks - {"", CHANNEL, MESSAGE, *PARTS}
        text = "".join(p.mark if p.mark in tags else p.text for p in pieces)
        return _by_tags(text, None if prefilled else self.opened(prompt), self._known)

    def _pieces(self, before: list[int], tokens: Sequence[int]) -> "list[_Piece]":
        pieces, run, done = [], list[int](), list(before)
        for token in [*tokens, None]:
            if token is not None and token not in self._marks:
                run.append(token)
                continue
            if run:
                text = continued(self._tokenizer, done, run)
                pieces.append(_Piece(text=text))
                done, run = [*done, *run], []
            if token is not None:
                pieces.append(_Piece(mark=self._marks[token]))
                done.append(token)
        return pieces


class _Piece(NamedTuple):
    mark: str = ""
    text: str = ""


def _by_channel(pieces: Sequence[_Piece], inside: bool) -> Response:
    """Harmony's messages: what is in the final channel is the answer, all else is thought.

    Args:
        pieces: The response.
        inside: Whether the prompt has opened the final message itself.
    """
    thoughts, answer = list[str](), list[str]()
    channel, name = FINAL, False
    for piece in pieces:
        if piece.mark == CHANNEL:
            channel, name, inside = "", True, False
        elif piece.mark == MESSAGE:
            name, inside = False, True
        elif piece.mark in PARTS:
            name = inside = False
        elif name:
            channel += piece.text
        elif inside:
            words = channel.split()
            (answer if words[:1] == [FINAL] else thoughts).append(piece.mark or piece.text)
    return Response("\n\n".join(part.strip() for part in thoughts).strip(), "".join(answer))


def _by_tags(
    text: str, opened: tuple[str, str] | None, known: Sequence[tuple[str, str]]
) -> Response:
    thoughts, pair = list[str](), opened
    answer, rest = "", text
    if pair is None:
        start = rest.lstrip()
        pair = next((p for p in PAIRS if start.startswith(p[0])), None)
        if pair is not None:
            rest = start[len(pair[0]) :]
        else:
            # A template or a beginning may have opened them further back.
            pair = next((p for p in known if _closes_first(rest, p)), None)
    while True:
        if pair is not None:
            thought, closed, rest = rest.partition(pair[1])
            thoughts.append(thought.removeprefix(pair[0]).strip())
            if not closed:  # the response ended in mid-thought: there is no answer
                break
            rest, pair = rest.lstrip(), None
            continue
        nearest = min(
            (p for p in known if p[0] in rest), key=lambda p: rest.find(p[0]), default=None
        )
        if nearest is None:
            answer += rest
            break
        head, _, rest = rest.partition(nearest[0])
        answer, pair = answer + head, nearest
    return Response("\n\n".join(thought for thought in thoughts if thought), answer)


def _closes_first(text: str, pair: tuple[str, str]) -> bool:
    end, start = text.find(pair[1]), text.find(pair[0])
    return end >= 0 and not 0 <= start < end


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
