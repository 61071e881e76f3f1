"""Everything that must hold of a vLLM server before the first trial, found out in seconds."""

import logging
import os
import random
import secrets
from dataclasses import dataclass, field
from typing import Any

import torch

from esr_eval.backends.base import Chat
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm import FACTS_PATH, ROWS_PATH, TRIED, code_digest
from esr_eval.backends.vllm.client import Server, ServerFaultError, ServerGoneError
from esr_eval.backends.vllm.payload import Found, rows_body, steering_args
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.spec import Runtime
from esr_eval.steering.edits import NO_END, LayerEdits, Term
from esr_eval.steering.kernel import Intervention, Read
from esr_eval.subjects import embedded_path

logger = logging.getLogger(__name__)
PROBE_TOKENS = 160
"""More than a block of any prefix cache holds, or a leak through it could not be seen."""
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
        adapters: Adapters that the server has beside the model.
        self_check: The proof that an edit reaches the logits, in words.
        versions: Versions on the server.
    """

    model: str
    longest: int | None
    adapters: tuple[str, ...] = ()
    self_check: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def check_server(server: Server, chat: Chat) -> ServerFacts:
    """Check a server against what is to be run on it.

    Raises:
        ServerGoneError: It does not answer.
        EsrError: Something does not fit; each check has its own sentence.
    """
    version = _version(server)
    if version.split("+")[0] not in TRIED:
        logger.warning(
            "vLLM %s at %s was not tried with this version of esr-eval (%s was): the checks at "
            "the connection decide.",
            version,
            server.url,
            ", ".join(TRIED),
        )
    facts = _find_model(server, chat.runtime)
    told = _check_plugin(server, chat, facts)
    facts.versions = {
        "vllm": version,
        "torch": str(told["torch"]),
        "runner": str(told["runner"]),
        "sampler": f"esr-eval {code_digest()}" if chat.runtime.sampler == "esr" else "vllm",
    }
    _check_steering(server, chat, facts)
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
        EsrError: It does not answer, or is no vLLM server.
    """
    assert remote.base_url is not None
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
    try:
        return str(server.get("/version")["version"])
    except (EsrError, ServerFaultError, ValueError, KeyError, TypeError):
        raise EsrError(
            f"What answers at {server.url} is no vLLM server (no /version there): check "
            "--model-base-url."
        ) from None


def _find_model(server: Server, runtime: Runtime) -> ServerFacts:
    served = server.get("/v1/models")["data"]
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


def _check_plugin(server: Server, chat: Chat, facts: ServerFacts) -> dict[str, Any]:
    """What the server tells of its model and its plugin, once they fit."""
    try:
        told = server.get(FACTS_PATH)
    except EsrError:
        raise EsrError(
            f"The vLLM server at {server.url} runs without this project's plugin, which steers: "
            f"{START}, or see docs/remote.md for one of your own."
        ) from None
    runtime, shape, where = chat.runtime, chat.shape, f"The vLLM server at {server.url}"
    if told["code"] != code_digest():
        raise EsrError(
            f"{where} was started by another version of esr-eval, and would steer and choose "
            f"tokens otherwise: stop it and {START}."
        )
    if (told["n_layers"], told["width"]) != (shape.n_layers, shape.d_model):
        raise EsrError(
            f"{where} runs a model of {told['n_layers']} layers and width {told['width']}, and "
            f"{runtime.model} has {shape.n_layers} and {shape.d_model}: it runs another model "
            "under this name."
        )
    if told["dtype"] != runtime.dtype:
        raise EsrError(
            f"{where} computes in {told['dtype']}, but {runtime.dtype} is asked for: pass "
            f"-M dtype={told['dtype']}, or start the server with --dtype {runtime.dtype}."
        )
    named = [
        n for n in (chat.probed_layer, runtime.feature_layer) if n not in (None, *told["layers"])
    ]
    if named:
        layers = " ".join(f"--layer {layer}" for layer in sorted({*told["layers"], *named}))
        raise EsrError(
            f"{where} was not started for layer {named[0]}, which is edited or read: stop it "
            f"and {START} with {layers}."
        )
    if told["device"] == "cpu" and facts.adapters and runtime.adapter is None:
        raise EsrError(
            f"{where} runs on a CPU and has the adapter {facts.adapters[0]}: there vLLM applies "
            "an adapter to whatever shares a batch with a request for it, so the plain model "
            "needs a server without adapters: stop it and start it with `esr-eval serve vllm "
            f"start {runtime.subject}`."
        )
    return told


def _check_steering(server: Server, chat: Chat, facts: ServerFacts) -> None:
    """Prove that an edit reaches the logits, is counted, and leaves nothing behind."""
    layer = chat.probed_layer
    # Fresh tokens: nothing of an earlier probe may be in a cache.
    tokens = random.SystemRandom().choices(range(len(chat.tokenizer)), k=PROBE_TOKENS)
    reads = {layer: [Read((0, 0), 0, NO_END, "tokens", None)]}
    found = Found(_probe(server, facts, tokens[:4], Intervention(1, {}, reads)))
    residual = found.read(0, 0, 4)
    assert residual is not None
    size = PROBE_SHARE * float(residual[-1].norm()) / chat.shape.d_model**0.5
    direction = torch.ones(chat.shape.d_model)
    edits = LayerEdits([[Term(direction, size, 0, None, sae_scaled=False)]])
    answer = _probe(server, facts, tokens, Intervention(1, {layer: edits}, {}))
    done, _ = Found(answer).counts(PROBE_TOKENS).get(layer, (0, 0))
    steered, later = _logprobs(answer), _logprobs(_probe(server, facts, tokens))
    alone = _logprobs(_probe(server, facts, tokens, salt=secrets.token_hex()))
    moved = _distance(steered, alone)
    where = f" on the vLLM server at {server.url}"
    facts.self_check = chat.check_probe(moved, done, PROBE_TOKENS, where)
    if _distance(later, alone) > SAME_SHARE * moved:
        raise EsrError(
            f"On the vLLM server at {server.url} a steered request changes later unsteered ones: "
            "please report it with the server's versions; --option=--no-enable-prefix-caching may "
            "help until then."
        )


def _probe(
    server: Server,
    facts: ServerFacts,
    tokens: list[int],
    plan: Intervention | None = None,
    salt: str | None = None,
) -> dict[str, Any]:
    """Ask for one greedy token, steered or not."""
    body: dict[str, Any] = {
        "model": facts.model,
        "prompt": tokens,
        "max_tokens": 1,
        "temperature": 0.0,
        "ignore_eos": True,
        "logprobs": 5,
        "return_tokens_as_token_ids": True,
    }
    if salt is not None:
        body["cache_salt"] = salt
    if plan is not None:
        body["vllm_xargs"], rows = steering_args(plan)
        if rows:
            server.post(ROWS_PATH, rows_body(rows))
    return server.post("/v1/completions", body)


def _logprobs(answer: dict[str, Any]) -> dict[str, float]:
    """The likeliest next tokens with their log probabilities."""
    told: dict[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return told


def _distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest difference of two next-token distributions, as far as they were told."""
    lowest = min(*one.values(), *other.values())
    tokens = {*one, *other}
    return max(abs(one.get(token, lowest) - other.get(token, lowest)) for token in tokens)
