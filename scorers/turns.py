"""The learned half of the phrase detector: does the text turn away from itself at this place?

The lower layers of SmolLM2-135M, whose weights come with the embedded subject's package, read the
task and the text, a window at a time, every word with those before and behind it in view. A
low-rank adapter of this project and a linear read-out, which looks at a place and some words
further on, tell for each place how likely a restart begins there. They were trained by
`scripts/train_turns.py` on the texts in `scripts/turns` and the passages marked "dev" in
`data/passages.jsonl`; what they find on passages by other hands is in docs/judges.md. It cannot
tell well whether a text is about its task; the sentence encoder can (`goes_on`).

Where a package of theirs is not installed, there is no reader, and the detector goes by words
alone; the log says so (`detector` in the score's metadata).
"""

import logging
import re
import threading
from bisect import bisect_right
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esr_eval._util.minilm import sentence_encoder, weights_folder
from esr_eval._util.threads import MadeOnce, threads_taking_short_turns
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime
from esr_eval.subjects import find_subject

logger = logging.getLogger(__name__)

SUBJECT = "smollm2-135m"
"""The registered subject whose lower layers read."""

HEAD = "head.safetensors"
"""File of the read-out, beside the adapter's."""

LAYERS = 20
"""So many of its 30 layers; fewer see less, and more take longer."""

BEHIND = (3, 10, 24, 48)
"""How many tokens after a place its states are read out."""

WINDOW = 224
"""Tokens that are read at once, those of the task among them."""

ASKED = 24
"""Most tokens of the task that are read."""

OVERLAP = 64
"""Tokens that two windows share, so that every place has words before and after it."""

AT_ONCE = 8
"""Windows in one pass."""

MOST = 1_152
"""Tokens of a response that are read, over twice the usual limit; what comes later is left to the
words alone."""

ON_TASK = 0.3
"""Cosine with the task from which a text is about it."""

BEFORE_PLACE, BEHIND_PLACE = 400, 500
"""Characters that are compared with the task, about as many as the encoder takes in."""

LONGEST = 20_000
"""Characters in which places are sought: more than so many tokens mostly have."""

RUN_ON = 120
"""So many characters without a mark, or without the end of a sentence, are run-on text."""

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
_UNMARKED = re.compile(rf"[^.!?…:;,\n—–()\[\]。！？，：；]{{{RUN_ON},}}")
_START = 1
_BETWEEN = "\n\n"

Scores = NDArray[np.float64]


class Tokens(NamedTuple):
    """A text in tokens: their ids, and at which character each begins."""

    ids: list[int]
    starts: list[int]

    def at(self, place: int) -> int:
        """The token that holds the character at a place."""
        return max(bisect_right(self.starts, place) - 1, 0)


class Frame(NamedTuple):
    """What stands before a part of the text in every window, and how much of it has room."""

    lead: list[int]
    room: int


def places(text: str) -> list[int]:
    """Where a restart may begin: clauses, and in run-on text without punctuation every word."""
    found = {match.end() for match in _PLACE.finditer(text)}
    for part in _UNMARKED.finditer(text):
        found.update(word.start() for word in _WORD.finditer(text, part.start(), part.end()))
    starts = sorted(found)
    words = _WORD.finditer(text)
    opening = next((word.end() for count, word in enumerate(words, 1) if count == FEWEST_WORDS), 0)
    last = len(text) - 2
    return [at for at in starts if opening and opening < at < last and text[at].strip()]


def goes_on(text: str, place: int, task: str) -> bool:
    """Whether a text is about its task before a place, and no more so behind it.

    Then there was nothing to turn away from. A task that is not known tells nothing.
    """
    if not task.strip():
        return False
    before, behind = text[max(0, place - BEFORE_PLACE) : place], text[place:][:BEHIND_PLACE]
    asked, was, comes = sentence_encoder().encode([task, before, behind])
    return bool(ON_TASK <= asked @ was >= asked @ comes)


class TurnReader:
    """The reader with its adapter; loads on first use. Safe to call from several threads."""

    def __init__(self, adapter: Path | None) -> None:
        """Name where the adapter lies; nothing is loaded. None reads without one, to train it."""
        self._adapter = adapter
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._layers: Any = None
        self._head: Any = None

    def scores(self, text: str, at: Sequence[int], task: str) -> Scores:
        """How likely a restart begins at each place, as a logit; NaN behind what is read.

        A place that two windows show is read in the one that shows more around it.

        Args:
            text: The response.
            at: Places in it, see `places`.
            task: What was asked; may be empty.
        """
        found = np.full(len(at), np.nan)
        if not at:
            return found
        with self._lock, threads_taking_short_turns():
            self._load()
            tokens, (lead, room) = self.tokens(text), self.frame(task)
            ids = tokens.ids[:MOST]
            starts = window_starts(len(ids), room)
            wanted: dict[int, list[tuple[int, int]]] = {}
            for index, place in enumerate(at):
                token = tokens.at(place)
                if token >= len(ids):
                    break
                start = min(starts, key=lambda start: abs(2 * (token - start) - room))
                wanted.setdefault(start, []).append((index, len(lead) + token - start))
            rows = {start: [*lead, *ids[start : start + room]] for start in wanted}
            order = sorted(rows, key=lambda start: len(rows[start]))
            for first in range(0, len(order), AT_ONCE):
                part = order[first : first + AT_ONCE]
                for start, read in zip(part, self._read([rows[s] for s in part]), strict=True):
                    for index, token in wanted[start]:
                        found[index] = read[token]
        return found

    def tokens(self, text: str) -> Tokens:
        """A text in tokens, without a mark of its beginning."""
        if self._tokenizer is None:
            from esr_eval.model.loading import load_tokenizer

            self._tokenizer = load_tokenizer(runtime()).backend_tokenizer
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        return Tokens(coded.ids, [start for start, _ in coded.offsets])

    def frame(self, task: str) -> Frame:
        """The task before each window of a text that answers it."""
        lead = [_START, *self.tokens(task).ids[:ASKED], *self.tokens(_BETWEEN).ids]
        return Frame(lead, WINDOW - len(lead) - 1)

    def _read(self, rows: list[list[int]]) -> Scores:
        """Logits of the tokens of some windows, [windows, longest]."""
        import torch

        with torch.inference_mode():
            ids, lengths = padded(rows), torch.tensor([len(row) for row in rows])
            states = states_of(self._layers, ids, lengths)
            seen = states_behind(states, lengths)
            found: Scores = self._head(seen)[..., 0].double().numpy()
        return found

    def _load(self) -> None:
        if self._layers is not None:
            return
        from peft.tuners.tuners_utils import BaseTunerLayer
        from safetensors.torch import load_file

        assert self._adapter is not None
        model = lower_layers(runtime(self._adapter))
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        self._head = read_out(model)
        self._head.load_state_dict(load_file(self._adapter / HEAD))
        self._layers = model.model


def runtime(adapter: Path | None = None) -> Runtime:
    """The embedded subject in full precision, with an adapter if one is named."""
    model = find_subject(SUBJECT).model
    return Runtime(subject=SUBJECT, model=model, adapter=str(adapter) if adapter else None)


def lower_layers(of: Runtime) -> Any:
    """The subject without its upper layers, on the CPU; its states come out in unit scale."""
    from torch import nn

    from esr_eval.model.loading import load_model

    model = load_model(of, "cpu")
    model.model.layers = model.model.layers[:LAYERS]
    model.model.norm = nn.RMSNorm(model.config.hidden_size, elementwise_affine=False)
    return model


def read_out(model: Any) -> Any:
    """An untrained read-out of `states_behind`."""
    from torch import nn

    return nn.Linear(model.config.hidden_size * len(BEHIND), 1)


def states_of(layers: Any, ids: Any, lengths: Any) -> Any:
    """What the layers make of rows of tokens, each of which sees all others of its row.

    A language model's tokens see only what came before; the adapter is trained for more.

    Args:
        layers: The subject's lower layers.
        ids: Token ids, [rows, tokens].
        lengths: Tokens of each row, [rows].

    Returns:
        States, [rows, tokens, width].
    """
    import torch

    rows, tokens = ids.shape
    within = torch.arange(tokens, device=ids.device)[None] < lengths[:, None]
    seen = within[:, None, None].expand(rows, 1, tokens, tokens)
    return layers(ids, attention_mask=seen, use_cache=False).last_hidden_state


def states_behind(states: Any, lengths: Any) -> Any:
    """Of each token the states of tokens after it, side by side; the last one's where none is.

    Args:
        states: [rows, tokens, width].
        lengths: Tokens of each row, [rows].
    """
    import torch

    rows, tokens, width = states.shape
    seen = []
    for behind in BEHIND:
        at = torch.arange(tokens, device=states.device)[None] + behind
        at = torch.minimum(at, lengths[:, None] - 1)[..., None].expand(rows, tokens, width)
        seen.append(states.gather(1, at))
    return torch.cat(seen, -1)


def window_starts(tokens: int, room: int) -> list[int]:
    """Where windows of `room` tokens begin, each sharing `OVERLAP` with the one before."""
    return list(range(0, max(tokens - OVERLAP, 1), room - OVERLAP))


def padded(rows: Sequence[Sequence[int]]) -> Any:
    """Rows of token ids as one tensor, [rows, longest]."""
    import torch

    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return ids


@MadeOnce
def turn_reader() -> TurnReader | None:
    """The reader of this process; None where its weights are not there, or cannot be unpacked."""
    try:
        from esr_eval.model.loading import model_source

        model_source(runtime())
        weights_folder()
    except (EsrError, OSError) as error:
        logger.warning("Restarts are searched by words alone, which find fewer. %s", error)
        return None
    return TurnReader(Path(str(resources.files("esr_eval.data"))) / "turns")
