"""What a model says, in its parts: its thoughts, and its answer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Said(NamedTuple):
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
    head = _plain(tokenizer, before)
    whole = _plain(tokenizer, [*before, *tokens])
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

    def split(self, prompt: Sequence[int], tokens: Sequence[int], prefilled: bool) -> Said:
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


def _by_channel(pieces: Sequence[_Piece], inside: bool) -> Said:
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
    return Said("\n\n".join(part.strip() for part in thoughts).strip(), "".join(answer))


def _by_tags(text: str, opened: tuple[str, str] | None, known: Sequence[tuple[str, str]]) -> Said:
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
    return Said("\n\n".join(thought for thought in thoughts if thought), answer)


def _closes_first(text: str, pair: tuple[str, str]) -> bool:
    end, start = text.find(pair[1]), text.find(pair[0])
    return end >= 0 and not 0 <= start < end


def _plain(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
