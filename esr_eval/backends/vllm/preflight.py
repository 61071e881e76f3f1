"""Everything that must hold of a vLLM server before the first trial, found out in seconds."""

import os
import random
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch

from esr_eval.backends.base import Chat
from esr_eval.backends.remote import RemoteArgs, is_loopback
from esr_eval.backends.vllm import PROBE_ARG, SAMPLER_SAYS, sampler_digest
from esr_eval.backends.vllm.client import Server, ServerFaultError, ServerGoneError
from esr_eval.backends.vllm.payload import Saved, hook_args
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.spec import Runtime
from esr_eval.steering.edits import NO_END, LayerEdits, Term
from esr_eval.steering.kernel import Intervention, Read
from esr_eval.subjects import embedded_path

PROBE_TOKENS = 160
"""More than a block of any prefix cache holds, or it could not be caught at work."""
PROBE_SHARE = 0.5
"""Part of the residual's norm that the probe adds: enough to move any model's logits."""
SAME_SHARE = 0.1
"""Two passes over the same tokens may differ by rounding, an edit's effect is far larger."""
KEY_ENV = "VLLM_API_KEY"
"""Environment variable with the server's key; the one that the server itself reads."""
START = "start it with `esr-eval serve vllm start`"


@dataclass
class ServerFacts:
    """What the checks found out about a server.

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


def check_trust(url: str, trusted: bool) -> None:
    """Refuse to send hooks to another machine unless told to.

    Raises:
        EsrError: The server is not on this machine, and the user has not vouched for it.
    """
    if not trusted and not is_loopback(url):
        raise EsrError(
            f"The vLLM server {url} is not on this machine, and steering sends it hooks, which "
            "are code that it runs, over a connection anyone in between can change: pass "
            "-M trust_server=true if it is yours and the way to it is safe (an SSH tunnel to "
            "127.0.0.1 needs no such word)."
        )


def check_server(server: Server, chat: Chat) -> ServerFacts:
    """Check a server against what is to be run on it.

    Raises:
        ServerGoneError: It does not answer.
        EsrError: Something does not fit; each check has its own sentence.
    """
    version = _version(server)
    facts = _find_model(server, chat.runtime)
    _check_prefix_cache(server)
    facts.our_sampler = _has_our_sampler(server, facts.model)
    facts.versions = {
        "vllm": version,
        "sampler": f"esr-eval {sampler_digest()}" if facts.our_sampler else "vllm",
    }
    _check_hooks(server, chat, facts)
    return facts


def first_check(server: Server, chat: Chat) -> ServerFacts:
    """The checks at the first connection, when nobody waits for a server that is down.

    Raises:
        EsrError: Something does not fit; each check has its own sentence.
    """
    try:
        return check_server(server, chat)
    except ServerGoneError as error:
        raise _gone(server, error) from error


def reach(remote: RemoteArgs) -> str:
    """Whether a server is there, and what it serves; nothing is run on it.

    Raises:
        EsrError: It does not answer, is no vLLM server, or is not trusted.
    """
    assert remote.base_url is not None
    check_trust(remote.base_url, remote.trust_server)
    key = remote.api_key or os.environ.get(KEY_ENV)
    server = Server(remote.base_url, key, remote.wait, lambda label, value: None)
    try:
        return f"vLLM {_version(server)} at {server.url}"
    except ServerGoneError as error:
        raise _gone(server, error) from error


def _gone(server: Server, error: ServerGoneError) -> EsrError:
    return EsrError(
        f"No vLLM server answers at {server.url} ({error}): {START}, or name another one "
        "with --model-base-url."
    )


def _version(server: Server) -> str:
    answer = server.get("/version")
    try:
        return str(answer.raise_for_status().json()["version"])
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        raise EsrError(
            f"What answers at {server.url} is no vLLM server (no /version there): check "
            "--model-base-url."
        ) from None


def _find_model(server: Server, runtime: Runtime) -> ServerFacts:
    answer = server.get("/v1/models")
    if answer.status_code in (401, 403):
        raise EsrError(
            f"The vLLM server at {server.url} does not accept the key: set VLLM_API_KEY to the "
            "one it was started with (--api-key)."
        )
    served = answer.raise_for_status().json()["data"]
    known = {runtime.subject, runtime.model, str(model_source(runtime)[0])}
    bases = [m for m in served if not m.get("parent") and known & {m["id"], m.get("root")}]
    if not bases:
        raise EsrError(
            f"The vLLM server at {server.url} serves {_listed(served)}, not {runtime.model}: "
            f"stop it and start it with `esr-eval serve vllm start {runtime.subject}`, or name "
            "another one with --model-base-url."
        )
    base = bases[0]
    longest, adapters = base.get("max_model_len"), [m for m in served if m.get("parent")]
    names = tuple(str(m["id"]) for m in adapters)
    if runtime.adapter is None:
        return ServerFacts(base["id"], longest, adapters=names)
    wanted = {runtime.adapter, str(embedded_path(runtime.adapter))}
    adapters = [m for m in adapters if wanted & {m["id"], m.get("root")}]
    if not adapters:
        raise EsrError(
            f"The vLLM server at {server.url} was started without the adapter {runtime.adapter}: "
            f"stop it and start it with `esr-eval serve vllm start {runtime.subject} --adapter "
            f"{runtime.adapter}` (vLLM's own options: --enable-lora --lora-modules NAME=PATH)."
        )
    return ServerFacts(adapters[0]["id"], longest, adapters=names)


def _listed(served: list[dict[str, Any]]) -> str:
    return ", ".join(str(model["id"]) for model in served) or "nothing"


def _check_prefix_cache(server: Server) -> None:
    answer = server.get("/metrics")
    told = re.findall(r'vllm:cache_config_info\{[^}]*enable_prefix_caching="(\w+)"', answer.text)
    if "True" in told:
        raise EsrError(_prefix_cache_sentence(server))


def _has_our_sampler(server: Server, model: str) -> bool:
    """Whether the server has our sampler, which alone refuses the probe, and the same version."""
    try:
        server.post(
            "/v1/completions", {**_probe_body(model, [1, 2]), "vllm_xargs": {PROBE_ARG: "?"}}
        )
    except EsrError as refusal:
        told = re.search(rf"{SAMPLER_SAYS} (\w+)", refusal.message)
        if told is None:
            raise
        if told[1] != sampler_digest():
            raise EsrError(
                f"The vLLM server at {server.url} was started by another version of esr-eval and "
                f"would choose other tokens: stop it and {START}."
            ) from None
        return True
    return False


def _check_hooks(server: Server, chat: Chat, facts: ServerFacts) -> None:
    """Prove that hooks run, fit the model, reach the logits, and leave nothing behind."""
    layer = chat.probed_layer
    # Fresh tokens: nothing of an earlier probe may be in a cache.
    tokens = random.SystemRandom().choices(range(len(chat.tokenizer)), k=PROBE_TOKENS)
    norm = _check_residual(server, chat, facts, tokens[:4], layer)
    size = PROBE_SHARE * norm / chat.shape.d_model**0.5
    direction = torch.ones(chat.shape.d_model)
    edits = LayerEdits([[Term(direction, size, 0, None, sae_scaled=False)]])
    edit = hook_args(Intervention(1, {layer: edits}, {}), chat.shape.n_layers)
    body = {**_probe_body(facts.model, tokens), "logprobs": 5, "return_tokens_as_token_ids": True}
    answer = server.post("/v1/completions", {**body, "vllm_xargs": edit})
    done, _ = Saved(answer).counts(PROBE_TOKENS).get(layer, (0, 0))
    steered, later = _logprobs(answer), _logprobs(server.post("/v1/completions", body))
    skip = {"skip_reading_prefix_cache": 1}
    alone = _logprobs(server.post("/v1/completions", {**body, "vllm_xargs": skip}))
    moved = _distance(steered, alone)
    where = f" on the vLLM server at {server.url}"
    facts.self_check = chat.check_probe(moved, done, PROBE_TOKENS, where)
    if _distance(later, alone) > SAME_SHARE * moved:
        raise EsrError(_prefix_cache_sentence(server))


def _check_residual(
    server: Server, chat: Chat, facts: ServerFacts, tokens: list[int], layer: int
) -> float:
    """Norm of the last token's residual; checks layers, width and dtype on the way."""
    shape, runtime = chat.shape, chat.runtime
    last = shape.n_layers - 1
    # The last layer too: a server that runs a smaller model has none of its number.
    both = enumerate(dict.fromkeys((layer, last)))
    reads = {at: [Read((0, i), 0, NO_END, "tokens", None)] for i, at in both}
    hook = hook_args(Intervention(1, {}, reads), shape.n_layers)
    body = {**_probe_body(facts.model, tokens), "vllm_xargs": hook}
    try:
        answer = server.post("/v1/completions", body)
    except ServerFaultError as error:
        raise EsrError(
            f"The vLLM server at {server.url} has no layer {last}, so it runs "
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
    if saved.about["device"] == "cpu" and facts.adapters and runtime.adapter is None:
        raise EsrError(
            f"The vLLM server at {server.url} runs on a CPU and has the adapter "
            f"{facts.adapters[0]}: there vLLM {facts.versions['vllm']} applies an adapter to "
            "whatever shares a batch with a request for it, so the plain model needs a server "
            f"without adapters: stop it and start it with `esr-eval serve vllm start "
            f"{runtime.subject}`."
        )
    facts.versions["torch"] = str(saved.about["torch"])
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


def _probe_body(model: str, tokens: list[int]) -> dict[str, Any]:
    """A request for one greedy token."""
    return {
        "model": model,
        "prompt": tokens,
        "max_tokens": 1,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def _prefix_cache_sentence(server: Server) -> str:
    """What is wrong with a prefix cache, and the way out."""
    return (
        f"The vLLM server at {server.url} keeps a prefix cache, through which steered requests "
        "change later unsteered ones: start it with --no-enable-prefix-caching, as "
        "`esr-eval serve vllm start` does."
    )
