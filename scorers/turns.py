"""The learned half of the phrase detector: does the text turn away from itself at this place?

all-MiniLM-L6-v2 with a low-rank adapter of this project reads the task and the text, a window at a
time, and says of each place how likely a restart begins there. It was trained by
`scripts/train_turns.py` on the snippets in `scripts/turns` and the passages marked "dev" in
`data/passages.jsonl`; what it finds on passages by other hands is in docs/judges.md.

Where the package with MiniLM's weights is not installed, there is no encoder, and the detector goes
by words alone; the log says so (`detector` in the score's metadata).
"""

import logging
import re
import threading
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esr_eval._util.minilm import INSTALL, find_weights, load_encoder, load_tokenizer

logger = logging.getLogger(__name__)

WINDOW = 224
"""Tokens that are read at once, those of the task among them."""

ASKED = 24
"""Most tokens of the task that are read."""

OVERLAP = 64
"""Tokens that two windows share, so that every place has words before and after it."""

AT_ONCE = 8
"""Windows in one pass."""

LONGEST = 20_000
"""Characters of a response that are read, some ten times what 512 tokens have; what comes later is
left to the words alone."""

FEWEST_WORDS = 4
"""After fewer words there is nothing to turn away from."""

_OPENERS = (
    "but|so|anyway|anyways|however|now|no|although|yet|oh|ok|okay|well|sorry|wait|let|lets|let's"
    "|please|here|here's|moving|back|hold|stop|actually|hmm|um|pardon|excuse|forgive|ignore"
    "|disregard|forget|scratch|seriously|instead|i|i'm|none"
)
_PLACE = re.compile(
    r"(?<=[.!?…:;])[\"'”’)*_]*\s+|(?<=[。！？，：；])|\n+[\s#*>_\-•]*|[—–]\s*|\s-+\s|,\s+|\(|\["
    rf"|\s(?=(?:{_OPENERS})\b)|\s(?=[A-Z][a-z']+ [a-z])"
)
_WORD = re.compile(r"\S+")
_CLS, _SEP = 101, 102

Scores = NDArray[np.float64]


class Tokens(NamedTuple):
    """A text in tokens: their ids, and at which character each begins."""

    ids: list[int]
    starts: list[int]

    def at(self, place: int) -> int:
        """The token that begins at a place or first after it; the last one where none does."""
        return min(bisect_left(self.starts, place), len(self.ids) - 1)


def places(text: str) -> list[int]:
    """Where a restart may begin: clauses, also in run-on text without punctuation."""
    starts = sorted({match.end() for match in _PLACE.finditer(text)})
    words = _WORD.finditer(text)
    opening = next((word.end() for count, word in enumerate(words, 1) if count == FEWEST_WORDS), 0)
    last = len(text) - 2
    return [at for at in starts if opening and opening < at < last and text[at].strip()]


class TurnEncoder:
    """The encoder with its adapter; loads on first use. Safe to call from several threads."""

    def __init__(self, weights: Path) -> None:
        """Name where MiniLM's weights lie; nothing is loaded."""
        self._weights = weights
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._model: Any = None
        self._head: Any = None

    def scores(self, text: str, at: Sequence[int], task: str) -> Scores:
        """How likely a restart begins at each place, 0 to 1.

        A place that two windows show is read in the one that shows more around it.

        Args:
            text: The response.
            at: Places in it, see `places`.
            task: What was asked; may be empty.
        """
        if not at:
            return np.zeros(0)
        with self._lock:
            self._load()
            asked, tokens = self.tokens(task).ids[:ASKED], self.tokens(text)
            room = WINDOW - len(asked) - 3
            starts = window_starts(len(tokens.ids), room)
            rows = [framed(asked, tokens.ids[start : start + room]) for start in starts]
            read = [
                scores[len(asked) + 2 :]
                for first in range(0, len(rows), AT_ONCE)
                for scores in self._read(rows[first : first + AT_ONCE])
            ]
        found = np.zeros(len(at))
        for index, place in enumerate(at):
            token = tokens.at(place)
            number = min(range(len(starts)), key=lambda one: abs(2 * (token - starts[one]) - room))
            found[index] = read[number][token - starts[number]]
        return found

    def tokens(self, text: str) -> Tokens:
        """A text in tokens, without the marks of its beginning and end."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._weights)
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        return Tokens(coded.ids, [start for start, _ in coded.offsets])

    def _read(self, rows: list[list[int]]) -> Scores:
        """Scores of the tokens of some windows, [windows, longest]."""
        import torch

        ids, mask = padded(rows)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            found: Scores = self._head(states)[..., 0].sigmoid().double().numpy()
        return found

    def _load(self) -> None:
        if self._model is not None:
            return
        from peft import PeftModel
        from safetensors.torch import load_file
        from torch import nn

        with resources.as_file(resources.files("esr_eval.data") / "turns") as folder:
            base = load_encoder(self._weights)
            adapted = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
            self._model = adapted.merge_and_unload().eval()
            head = load_file(folder / "head.safetensors")
        self._head = nn.Linear(head["weight"].shape[1], 1)
        self._head.load_state_dict(head)


def window_starts(tokens: int, room: int) -> list[int]:
    """Where windows of `room` tokens begin, each sharing `OVERLAP` with the one before."""
    return list(range(0, max(tokens - OVERLAP, 1), room - OVERLAP))


def framed(asked: list[int], part: list[int]) -> list[int]:
    """What the encoder reads: the task, then a part of the text."""
    return [_CLS, *asked, _SEP, *part, _SEP]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Rows of token ids as one tensor, and which of it are tokens; both [rows, longest]."""
    import torch

    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros(ids.shape)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


@cache
def turn_encoder() -> TurnEncoder | None:
    """The encoder of this process; None where MiniLM's package is not installed."""
    weights = find_weights()
    if weights is None:
        logger.warning("Restarts are searched by words alone, which find fewer: %s", INSTALL)
        return None
    return TurnEncoder(weights)
