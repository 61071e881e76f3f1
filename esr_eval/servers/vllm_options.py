"""The options with which vLLM's own server is started."""

import json
from collections.abc import Sequence

from esr_eval.spec import Runtime
from esr_eval.subjects import Subject, embedded_path, subjects

LARGEST_ADAPTER_RANK = 512
HUB_ADAPTER_RANK = 64
"""Taken for an adapter on the hub, whose config is not here to be read."""


def model_options(
    subject: Subject, runtime: Runtime, dtype: str, revision: str | None
) -> list[str]:
    """Which model, in which form, and what steering needs of the server."""
    from esr_eval.model.loading import model_source

    source, _ = model_source(runtime)
    names = list(dict.fromkeys([_base_name(subject), runtime.model]))
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(source)),
        *("--served-model-name", *names),
        *("--dtype", dtype),
        *(["--revision", revision] if revision else []),
        # Hooks run between layers: no graph may swallow them.
        "--enforce-eager",
        # Steered keys and values would be found there by unsteered requests.
        "--no-enable-prefix-caching",
        # Our sampler reads the tokens made so far, so each step must be over before the next.
        "--no-async-scheduling",
        *("--generation-config", "vllm"),
    ]


def _base_name(subject: Subject) -> str:
    """The subject without its adapter: the name of its base, where that is one of ours."""
    tuned = [one.name for one in subjects().values() if one.tuned == subject.name]
    return tuned[0] if tuned else subject.name


def adapter_options(adapters: Sequence[str]) -> list[str]:
    """LoRA adapters, each served under the name that `-M adapter=` gives it."""
    if not adapters:
        return []
    modules, rank = [], 8
    for adapter in adapters:
        folder = embedded_path(adapter)
        modules.append(json.dumps({"name": adapter, "path": str(folder)}))
        config = folder / "adapter_config.json"
        if config.is_file():
            rank = max(rank, int(json.loads(config.read_text("utf-8"))["r"]))
        else:  # on the hub
            rank = max(rank, HUB_ADAPTER_RANK)
    # vLLM knows powers of two.
    rank = min(LARGEST_ADAPTER_RANK, 1 << (rank - 1).bit_length())
    return ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules]


def parallel_options(tensor: int, pipeline: int, data: int) -> list[str]:
    """How the model is spread over GPUs; 1 is vLLM's default."""
    named = {"tensor": tensor, "pipeline": pipeline, "data": data}
    return [
        word
        for name, size in named.items()
        if size > 1
        for word in (f"--{name}-parallel-size", str(size))
    ]
