"""Adapters: whether one fits its model, found out from names and shapes, and loaded by PEFT."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import (
    PeftConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils import load_peft_weights
from torch import Tensor

from esr_eval.errors import EsrError
from esr_eval.model.weights import ADAPTER_CONFIG, check_adapter_files
from esr_eval.spec import Runtime
from esr_eval.subjects import embedded_path

KINDS = ("LORA", "LOHA", "LOKR", "IA3")
"""PEFT's kinds that are wholly in the layers they are injected into."""
BESIDE_LAYERS = ("alora_invocation_tokens", "layer_replication")
"""Settings of LoRA that need more than that, and would be lost without a word."""
NAME = "default"
PREFIX = "base_model.model."
SHOWN = 3


def check_adapter(runtime: Runtime, model: Any) -> None:
    """Whether the runtime's adapter fits its model, before any weights of the model load.

    Args:
        runtime: Names model and adapter.
        model: The model without weights (`loading.empty_model`); changed in place.

    Raises:
        EsrError: Files are damaged or missing, PEFT cannot apply the adapter, or its tensors are
            not the ones that the model has places for.
    """
    assert runtime.adapter is not None
    source = _source(runtime.adapter)
    with _plain_errors(runtime):
        config = _config(runtime, source)
        tensors = _tensors(source)
        # What PEFT works out from the model's own weights is worked out when they have loaded.
        config.init_lora_weights = True
        inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=True)
        _check_places(runtime, model, tensors)


def load_adapter(model: Any, runtime: Runtime) -> None:
    """Put the runtime's adapter into a model, as PEFT itself does.

    Args:
        model: A model of transformers; changed in place.
        runtime: Names the adapter.

    Raises:
        EsrError: It does not fit, or did not arrive whole.
    """
    assert runtime.adapter is not None
    source = _source(runtime.adapter)
    with _plain_errors(runtime):
        config = _config(runtime, source)
        tensors = _tensors(source)
        inject_adapter_in_model(config, model, NAME)
        # PEFT keeps adapters in float32 beside a model in half precision.
        cast_adapter_dtype(model, NAME)
        _check_places(runtime, model, tensors)
        set_peft_model_state_dict(model, tensors, NAME)
        _check_arrived(runtime, model, tensors)
    model.requires_grad_(False)


def _source(adapter: str) -> str:
    folder = embedded_path(adapter)
    if not folder.is_dir():
        return adapter  # a repository of the hub
    check_adapter_files(folder)
    return str(folder)


def _tensors(source: str) -> dict[str, Tensor]:
    """An adapter's weights by their names in the model, without the name of PEFT's wrapper."""
    found = load_peft_weights(source, device="cpu")
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def _config(runtime: Runtime, source: str) -> Any:
    config = PeftConfig.from_pretrained(source)
    kind = getattr(config.peft_type, "value", config.peft_type)
    beside = next((name for name in BESIDE_LAYERS if getattr(config, name, None)), None)
    if kind not in KINDS or beside is not None:
        raise EsrError(
            f"The adapter {runtime.adapter} is of a kind ({beside or kind}) that is not known to "
            f"run as it was trained; known are {', '.join(KINDS)}: merge it into its model, and "
            "name the merged one."
        )
    if runtime.backend == "vllm" and (kind != "LORA" or getattr(config, "use_dora", False)):
        raise EsrError(
            f"The adapter {runtime.adapter} is no plain LoRA, and vLLM applies no other: use "
            "-M backend=local, or merge it into its model."
        )
    config.inference_mode = True
    return config


def _places(model: Any) -> dict[str, Tensor]:
    """Adapter weights that a model has been given places for, by their names in a file."""
    found = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    return {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}


def _check_places(runtime: Runtime, model: Any, given: Mapping[str, Tensor]) -> None:
    places = _places(model)
    own = model.state_dict()  # layers of the base that were saved whole with the adapter
    homeless = [name for name in given if name not in places and name not in own]
    missing = [name for name in places if name not in given]
    other = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(place.shape)}"
        for name, tensor in given.items()
        if (place := places.get(name, own.get(name))) is not None and place.shape != tensor.shape
    ]
    wrong = []
    if homeless:
        wrong.append(
            f"{len(homeless)} of the adapter's {len(given)} tensors found no place in the model "
            f"({_some(homeless)})"
        )
    if missing:
        wrong.append(
            f"{len(missing)} of the model's {len(places)} adapter weights were not in the file "
            f"({_some(missing)})"
        )
    if other:
        wrong.append(f"{len(other)} have another shape ({_some(other)})")
    if wrong or not places:
        raise EsrError(
            f"The adapter {runtime.adapter} does not fit {runtime.model}: "
            f"{', '.join(wrong) or 'it holds no weights'}. Name the model that it was trained "
            "on, or save it anew with PEFT on that model."
        )


def _check_arrived(runtime: Runtime, model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Compare what the model now holds with the file, whatever the loading said of itself."""
    places = _places(model)
    for name, tensor in tensors.items():
        place = places.get(name)
        if place is not None and not torch.equal(
            place.float().cpu(), tensor.to(place.dtype).float()
        ):
            raise EsrError(
                f"The adapter {runtime.adapter} did not arrive in {runtime.model}: {name} is "
                "another there than in the file. Please report the versions of peft and "
                "transformers."
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


@contextmanager
def _plain_errors(runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except EsrError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise EsrError(
            f"The adapter {runtime.adapter} could not be loaded: {said[:300].rstrip('.')}. Check "
            f"that it is a PEFT adapter ({ADAPTER_CONFIG}, adapter_model.safetensors) for "
            f"{runtime.model}."
        ) from error
