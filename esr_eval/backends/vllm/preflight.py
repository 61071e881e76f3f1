"""Everything that must hold of a vLLM server before the first trial, found out in seconds."""

import logging
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from esr_eval.backends.base import Chat
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm import FACTS_PATH, ROWS_PATH, TRIED, code_digest
from esr_eval.backends.vllm.client import Server, ServerFaultError, ServerGoneError
from esr_eval.backends.vllm.payload import Found, request_body
from esr_eval.backends.vllm.wire import rows_body
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
Logprobs = dict[str, float]
"""The likeliest next tokens with their log probabilities."""
START = "start it with `esr-eval serve vllm start`"


@dataclass(frozen=True)
class ServerFacts:
    """What the checks found out about a server.

    Attributes:
        model: Name by which the server knows the model, or the adapter on it.
        longest: Most tokens of prompt and answer together; None when the server does not say.
        versions: Versions on the server.
        self_check: The proof that an edit reaches the logits, in words.
    """

    model: str
    longest: int | None
    versions: dict[str, str]
    self_check: str


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
    served = server.get("/v1/models")["data"]
    model, longest = _find_model(server, chat.runtime, served)
    told = _check_plugin(server, chat, [str(m["id"]) for m in served if m.get("parent")])
    versions = {
        "vllm": version,
        "torch": str(told["torch"]),
        "runner": str(told["runner"]),
        "sampler": f"esr-eval {code_digest()}" if chat.runtime.sampler == "esr" else "vllm",
    }
    return ServerFacts(model, longest, versions, _check_steering(server, chat, model))


def reach(remote: RemoteArgs) -> str:
    """Whether a server is there, and what it serves; nothing is run on it.

    Raises:
        EsrError: It does not answer, or is no vLLM server.
    """
    server = Server(remote)
    with at_once(server):
        return f"vLLM {_version(server)} at {server.url}"


@contextmanager
def at_once(server: Server) -> Iterator[None]:
    """For the first connection, when nobody waits for a server that is down.

    Raises:
        EsrError: In the place of `ServerGoneError`.
    """
    try:
        yield
    except ServerGoneError as error:
        raise EsrError(
            f"No vLLM server answers at {server.url} ({error}): {START}, or name another one "
            "with --model-base-url."
        ) from error


def _version(server: Server) -> str:
    try:
        return str(server.get("/version")["version"])
    except (EsrError, ServerFaultError, ValueError, KeyError, TypeError):
        raise EsrError(
            f"What answers at {server.url} is no vLLM server (no /version there): check "
            "--model-base-url."
        ) from None


def _find_model(
    server: Server, runtime: Runtime, served: list[dict[str, Any]]
) -> tuple[str, int | None]:
    """The server's name of the model, or of the adapter on it, and the longest text it takes."""
    known = {runtime.subject, runtime.model, str(model_source(runtime)[0])}
    bases = [m for m in served if not m.get("parent") and known & {m["id"], m.get("root")}]
    if not bases:
        listed = ", ".join(str(model["id"]) for model in served) or "nothing"
        raise EsrError(
            f"The vLLM server at {server.url} serves {listed}, not {runtime.model}: "
            f"stop it and start it with `esr-eval serve vllm start {runtime.subject}`, or name "
            "another one with --model-base-url."
        )
    found = bases
    if runtime.adapter is not None:
        wanted = {runtime.adapter, str(embedded_path(runtime.adapter))}
        found = [m for m in served if m.get("parent") and wanted & {m["id"], m.get("root")}]
    if not found:
        raise EsrError(
            f"The vLLM server at {server.url} was started without the adapter {runtime.adapter}: "
            f"stop it and start it with `esr-eval serve vllm start {runtime.subject} --adapter "
            f"{runtime.adapter}` (vLLM's own options: --enable-lora --lora-modules NAME=PATH)."
        )
    return found[0]["id"], bases[0].get("max_model_len")


def _check_plugin(server: Server, chat: Chat, adapters: list[str]) -> dict[str, Any]:
    """What the server tells of its model and its plugin, once they fit."""
    runtime, shape, where = chat.runtime, chat.shape, f"The vLLM server at {server.url}"
    try:
        told = server.get(FACTS_PATH)
    except EsrError:
        raise EsrError(
            f"{where} runs without this project's plugin, which steers: {START}, or see "
            "docs/remote.md for one of your own."
        ) from None
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
    if told["device"] == "cpu" and adapters and runtime.adapter is None:
        raise EsrError(
            f"{where} runs on a CPU and has the adapter {adapters[0]}: there vLLM applies "
            "an adapter to whatever shares a batch with a request for it, so the plain model "
            "needs a server without adapters: stop it and start it with `esr-eval serve vllm "
            f"start {runtime.subject}`."
        )
    return told


def _check_steering(server: Server, chat: Chat, model: str) -> str:
    """Prove that an edit reaches the logits, is counted, and leaves nothing behind."""
    layer, width = chat.probed_layer, chat.shape.d_model
    # Fresh tokens: nothing of an earlier probe may be in a cache.
    tokens = random.SystemRandom().choices(range(len(chat.tokenizer)), k=PROBE_TOKENS)

    def probe(n: int, plan: Intervention | None = None, **more: str) -> tuple[Found, Logprobs]:
        """Ask for one greedy token after the first `n`, steered or not."""
        body, rows = request_body(model, tokens[:n], 1, plan)
        if rows:
            server.post(ROWS_PATH, rows_body(rows))
        told = {"logprobs": 5, "return_tokens_as_token_ids": True}
        answer = server.post("/v1/completions", body | told | more)
        return Found.in_answer(answer), answer["choices"][0]["logprobs"]["top_logprobs"][0]

    reads = {layer: [Read((0, 0), 0, NO_END, "tokens", None)]}
    residuals = probe(4, Intervention(1, {}, reads))[0].residuals(layer, 0, 4)
    size = PROBE_SHARE * float(residuals[-1].norm()) / width**0.5
    edits = LayerEdits([[Term(torch.ones(width), size, 0, None, sae_scaled=False)]])
    found, steered = probe(PROBE_TOKENS, Intervention(1, {layer: edits}, {}))
    _, later = probe(PROBE_TOKENS)
    _, alone = probe(PROBE_TOKENS, cache_salt=secrets.token_hex())
    moved = _distance(steered, alone)
    done, _ = found.counted(PROBE_TOKENS).get(layer, (0, 0))
    where = f" on the vLLM server at {server.url}"
    told = chat.check_probe(moved, done, PROBE_TOKENS, where)
    if _distance(later, alone) > SAME_SHARE * moved:
        raise EsrError(
            f"On the vLLM server at {server.url} a steered request changes later unsteered ones: "
            "please report it with the server's versions; --option=--no-enable-prefix-caching may "
            "help until then."
        )
    return told


def _distance(one: Logprobs, other: Logprobs) -> float:
    """Largest difference of two next-token distributions, as far as they were told."""
    lowest = min(*one.values(), *other.values())
    tokens = {*one, *other}
    return max(abs(one.get(token, lowest) - other.get(token, lowest)) for token in tokens)
