"""The learned half of the phrase detector: does the text turn away from itself at this place?

all-MiniLM-L6-v2 with a low-rank adapter of this project reads the task, the words before a place
and the words after it, and says how likely a restart begins there. It was trained by
`scripts/train_turns.py` on the snippets in `scripts/turns` and the passages marked "dev" in
`data/passages.jsonl`; what it finds on passages by other hands is in docs/judges.md.

Where the package with MiniLM's weights is not installed, there is no encoder, and the detector goes
by words alone (`phrases.DETECTOR` says which one ran).
"""

import re
import threading
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esr_eval._util.minilm import find_weights, load_encoder, load_tokenizer

WORDS_BEFORE, WORDS_AFTER = 16, 18
"""Words that are read before a place and from it on."""

TOKENS = (10, 20, 24)
"""Most tokens of the task, of the words before, and of the words after."""

MOST_PLACES = 240
"""Places of a response that are read, some three times what 512 tokens have; later ones are left
to the words alone."""

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

        All places of a text are one batch, so that nothing but the text decides their scores.

        Args:
            text: The response.
            at: Places in it, see `places`.
            task: What was asked; may be empty.
        """
        if not at:
            return np.zeros(0)
        import torch

        with self._lock:
            self._load()
            rows = [self.tokens(text, place, task) for place in at]
            longest = max(map(len, rows))
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros(len(rows), longest)
            for index, row in enumerate(rows):
                ids[index, : len(row)] = torch.tensor(row)
                mask[index, : len(row)] = 1
            with torch.inference_mode():
                states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                found = self._head(pooled(states, mask))[:, 0].sigmoid()
        return np.asarray(found.double().numpy())

    def tokens(self, text: str, place: int, task: str) -> list[int]:
        """Token ids of one place: task, words before, words from it on."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._weights)
        before = " ".join(text[max(0, place - 300) : place].split()[-WORDS_BEFORE:])
        after = " ".join(text[place : place + 400].split()[:WORDS_AFTER])
        asked, was, comes = (
            self._tokenizer.encode(part, add_special_tokens=False).ids
            for part in (task, before, after)
        )
        most_asked, most_before, most_after = TOKENS
        return [
            _CLS,
            *asked[:most_asked],
            _SEP,
            *was[-most_before:],
            _SEP,
            *comes[:most_after],
            _SEP,
        ]

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


def pooled(states: Any, mask: Any) -> Any:
    """First token and mean of a sequence's states, side by side: what the head reads."""
    import torch

    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.cat([states[:, 0], mean], -1)


@cache
def turn_encoder() -> TurnEncoder | None:
    """The encoder of this process; None where MiniLM's package is not installed."""
    weights = find_weights()
    return None if weights is None else TurnEncoder(weights)
