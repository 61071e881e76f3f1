"""Loading a subject's weights into transformers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from esr_eval.errors import EsrError
from esr_eval.spec import Runtime
from esr_eval.weights import PACKAGE_PREFIX, package_file


def pick_device(device: str | None) -> str:
    """The device to run on: the one asked for, or the best one there is."""
    if device is not None:
        return device
    if torch.cuda.is_available():
        return "auto" if torch.cuda.device_count() > 1 else "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def read_shape(runtime: Runtime) -> tuple[int, int]:
    """Number of decoder layers and residual width, from the model's config alone.

    Raises:
        EsrError: There is no such model, or it cannot be reached.
    """
    source, extra = _source(runtime)
    with _plain_errors(runtime):
        config = AutoConfig.from_pretrained(source, **extra).get_text_config()
    return int(config.num_hidden_layers), int(config.hidden_size)


def load_model(runtime: Runtime, device: str | None) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        runtime: Names the model, revision, adapter and dtype.
        device: transformers device map; None picks one.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        EsrError: They cannot be loaded.
    """
    source, extra = _source(runtime)
    transformers_logging.disable_progress_bar()
    with _plain_errors(runtime):
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, runtime.dtype), device_map=pick_device(device), **extra
        )
        if runtime.adapter is not None:
            model.load_adapter(runtime.adapter)
    if tokenizer.chat_template is None:
        raise EsrError(f"{runtime.model} has no chat template: ESR needs an instruction-tuned model.")
    return model.eval(), tokenizer


def _source(runtime: Runtime) -> tuple[str, dict[str, Any]]:
    if runtime.model.startswith(PACKAGE_PREFIX):
        file = package_file(runtime.model)
        return str(file.parent), {"gguf_file": file.name}
    return runtime.model, {"revision": runtime.revision} if runtime.revision else {}


@contextmanager
def _plain_errors(runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise EsrError(
            f"{runtime.model} could not be loaded: {first_line}{offline} Check the id, your "
            "access to it (hf auth login), and the network."
        ) from error
