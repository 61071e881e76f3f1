"""Proof, by four tiny requests, that a vLLM server steers, and that steering leaves no trace."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch

from esr_eval.backends.chat import Chat
from esr_eval.backends.vllm.client import Server, ServerFaultError
from esr_eval.backends.vllm.payload import NOTHING, as_bytes, hook_args
from esr_eval.backends.vllm.results import Saved
from esr_eval.errors import EsrError

PROBE_TOKENS = 160
"""More than a block of any prefix cache holds, or it could not be caught at work."""
PROBE_SHARE = 0.5
"""Part of the residual's norm that the probe adds: enough to move any model's logits."""
SAME_SHARE = 0.1
"""Two passes over the same tokens may differ by rounding, an edit's effect is far larger."""
START = "start it with `esr-eval serve vllm start`"


@dataclass
class Found:
    """What the checks found.

    Attributes:
        model: Name by which the server knows the model, or the adapter on it.
        longest: Most tokens of prompt and answer together; None when the server does not say.
        our_sampler: Whether the server chooses tokens as every other backend does.
        adapters: Adapters that the server has beside the model.
        self_check: The proof that an edit reaches the logits, in words.
        versions: Versions on the server.
    """

    model: str
    longest: int | None
    our_sampler: bool = False
    adapters: tuple[str, ...] = ()
    self_check: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def check_hooks(server: Server, chat: Chat, found: Found) -> None:
    """Prove that hooks run, fit the model, reach the logits, and leave nothing behind."""
    layer = chat.probed_layer
    # Fresh tokens: nothing of an earlier probe may be in a cache.
    tokens = random.SystemRandom().choices(range(len(chat.tokenizer)), k=PROBE_TOKENS)
    norm = _check_residual(server, chat, found, tokens[:4], layer)
    size = PROBE_SHARE * norm / chat.shape.d_model**0.5
    term = {
        "direction": as_bytes(torch.ones(chat.shape.d_model)),
        "amount": size,
        "start": 0,
        "stop": None,
        "sae_scaled": False,
    }
    edit = hook_args({layer: {**NOTHING, "terms": [term]}}, chat.shape.n_layers)
    body = {**probe_body(found.model, tokens), "logprobs": 5, "return_tokens_as_token_ids": True}
    answer = server.post("/v1/completions", {**body, "vllm_xargs": edit})
    done, _ = Saved(answer).counts(PROBE_TOKENS).get(layer, (0, 0))
    steered, later = _logprobs(answer), _logprobs(server.post("/v1/completions", body))
    skip = {"skip_reading_prefix_cache": 1}
    alone = _logprobs(server.post("/v1/completions", {**body, "vllm_xargs": skip}))
    moved = _distance(steered, alone)
    where = f" on the vLLM server at {server.url}"
    found.self_check = chat.told_of_probe(moved, done, PROBE_TOKENS, where)
    if _distance(later, alone) > SAME_SHARE * moved:
        raise EsrError(prefix_cache_sentence(server))


def _check_residual(
    server: Server, chat: Chat, found: Found, tokens: list[int], layer: int
) -> float:
    """Norm of the last token's residual; checks layers, width and dtype on the way."""
    shape, runtime = chat.shape, chat.runtime
    read = {"index": 0, "start": 0, "stop": None, "latents": None}
    last = {**NOTHING, "reads": [{**read, "index": 1}]}
    plans = {layer: {**NOTHING, "reads": [read]}, shape.n_layers - 1: last}
    if layer == shape.n_layers - 1:
        plans = {layer: {**NOTHING, "reads": [read]}}
    body = {**probe_body(found.model, tokens), "vllm_xargs": hook_args(plans, shape.n_layers)}
    try:
        answer = server.post("/v1/completions", body)
    except ServerFaultError as error:
        raise EsrError(
            f"The vLLM server at {server.url} has no layer {shape.n_layers - 1}, so it runs "
            f"another model than {runtime.model} under its name, or cannot run hooks ({error})."
        ) from error
    if "hook_results" not in answer:
        raise EsrError(
            f"The vLLM server at {server.url} does not run hooks: install vllm-lens beside vllm "
            f"there, or {START}."
        )
    saved = Saved(answer)
    if saved.about.get("width") != shape.d_model:
        raise EsrError(
            f"The residual stream on the vLLM server at {server.url} has width "
            f"{saved.about.get('width')}, that of {runtime.model} {shape.d_model}: it runs "
            "another model under this name."
        )
    if saved.about.get("dtype") != runtime.dtype:
        raise EsrError(
            f"The vLLM server at {server.url} computes in {saved.about.get('dtype')}, but "
            f"{runtime.dtype} is asked for: pass -M dtype={saved.about.get('dtype')}, or start "
            f"the server with --dtype {runtime.dtype}."
        )
    if saved.about["device"] == "cpu" and found.adapters and runtime.adapter is None:
        raise EsrError(
            f"The vLLM server at {server.url} runs on a CPU and has the adapter "
            f"{found.adapters[0]}: there vLLM {found.versions['vllm']} applies an adapter to "
            "whatever shares a batch with a request for it, so the plain model needs a server "
            f"without adapters: stop it and start it with `esr-eval serve vllm start "
            f"{runtime.subject}`."
        )
    found.versions["torch"] = str(saved.about["torch"])
    residual = saved.read(0, len(tokens) - 1, len(tokens))
    assert residual is not None
    return float(residual.norm())


def _logprobs(answer: dict[str, Any]) -> dict[str, float]:
    """The likeliest next tokens with their log probabilities."""
    told: dict[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return told


def _distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest difference of two next-token distributions, as far as they were told."""
    lowest = min(*one.values(), *other.values())
    tokens = {*one, *other}
    return max(abs(one.get(token, lowest) - other.get(token, lowest)) for token in tokens)


def probe_body(model: str, tokens: list[int]) -> dict[str, Any]:
    """A request for one greedy token."""
    return {
        "model": model,
        "prompt": tokens,
        "max_tokens": 1,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def prefix_cache_sentence(server: Server) -> str:
    """What is wrong with a prefix cache, and the way out."""
    return (
        f"The vLLM server at {server.url} keeps a prefix cache, through which steered requests "
        "change later unsteered ones: start it with --no-enable-prefix-caching, as "
        "`esr-eval serve vllm start` does."
    )
