"""Everything that must hold of a vLLM server before the first trial, found out in seconds."""

import re
from typing import Any

import httpx

from esr_eval.backends.chat import Chat
from esr_eval.backends.vllm.client import Server, ServerGoneError, is_loopback
from esr_eval.backends.vllm.names import PROBE_ARG, SAMPLER_SAYS, sampler_digest
from esr_eval.backends.vllm.probe import (
    START,
    Found,
    check_hooks,
    prefix_cache_sentence,
    probe_body,
)
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.spec import Runtime
from esr_eval.subjects import embedded_path


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


def check_server(server: Server, chat: Chat) -> Found:
    """Check a server against what is to be run on it.

    Raises:
        ServerGoneError: It does not answer.
        EsrError: Something does not fit; each check has its own sentence.
    """
    version = _version(server)
    found = _find_model(server, chat.runtime)
    _check_prefix_cache(server)
    found.our_sampler = _has_our_sampler(server, found.model)
    found.versions = {
        "vllm": version,
        "sampler": f"esr-eval {sampler_digest()}" if found.our_sampler else "vllm",
    }
    check_hooks(server, chat, found)
    return found


def first_check(server: Server, chat: Chat) -> Found:
    """The checks at the first connection, when nobody waits for a server that is down.

    Raises:
        EsrError: Something does not fit; each check has its own sentence.
    """
    try:
        return check_server(server, chat)
    except ServerGoneError as error:
        raise EsrError(
            f"No vLLM server answers at {server.url} ({error}): {START}, or name another one "
            "with --model-base-url."
        ) from error


def _version(server: Server) -> str:
    answer = server.get("/version")
    try:
        return str(answer.raise_for_status().json()["version"])
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        raise EsrError(
            f"What answers at {server.url} is no vLLM server (no /version there): check "
            "--model-base-url."
        ) from None


def _find_model(server: Server, runtime: Runtime) -> Found:
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
        return Found(base["id"], longest, adapters=names)
    wanted = {runtime.adapter, str(embedded_path(runtime.adapter))}
    adapters = [m for m in adapters if wanted & {m["id"], m.get("root")}]
    if not adapters:
        raise EsrError(
            f"The vLLM server at {server.url} was started without the adapter {runtime.adapter}: "
            f"stop it and start it with `esr-eval serve vllm start {runtime.subject} --adapter "
            f"{runtime.adapter}` (vLLM's own options: --enable-lora --lora-modules NAME=PATH)."
        )
    return Found(adapters[0]["id"], longest, adapters=names)


def _listed(served: list[dict[str, Any]]) -> str:
    return ", ".join(str(model["id"]) for model in served) or "nothing"


def _check_prefix_cache(server: Server) -> None:
    answer = server.get("/metrics")
    told = re.findall(r'vllm:cache_config_info\{[^}]*enable_prefix_caching="(\w+)"', answer.text)
    if "True" in told:
        raise EsrError(prefix_cache_sentence(server))


def _has_our_sampler(server: Server, model: str) -> bool:
    """Whether the server has our sampler, which alone refuses the probe, and the same version."""
    try:
        server.post(
            "/v1/completions", {**probe_body(model, [1, 2]), "vllm_xargs": {PROBE_ARG: "?"}}
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
