"""The vLLM backend: requests to a vLLM server, each with its own edits, readouts and seed."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.backends.base import BackendInfo
from esr_eval.backends.chat import Chat
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm.client import Server
from esr_eval.backends.vllm.payload import Payloads, residual_args, sampling_args
from esr_eval.backends.vllm.preflight import check_server, check_trust, first_check
from esr_eval.backends.vllm.results import Saved
from esr_eval.errors import EsrError
from esr_eval.sae.encoder import EncodeFn
from esr_eval.spec import Readout, Runtime, Span
from esr_eval.steering.kernel import reduced
from esr_eval.steering.requests import Generated, Passage, Reading, Row, Steered
from esr_eval.steering.results import (
    fed_tokens,
    generated,
    read_value,
    reading,
    readout_result,
)

COMPLETIONS = "/v1/completions"
KEY_ENV = "VLLM_API_KEY"
"""Environment variable with the server's key; the one that the server itself reads."""
Request = TypeVar("Request")
Result = TypeVar("Result")


class VLLMBackend(Chat):
    """A model on a vLLM server; the server's continuous batching mixes the requests.

    Only rows of the SAE that a request names travel with it. A readout of the whole SAE, or of
    one whose latents depend on each other, brings the residual stream of the positions it reads
    back instead (4/3 of d_model values of the model's dtype per position, in base64), and the
    SAE is loaded here to encode it.
    """

    def __init__(
        self,
        runtime: Runtime,
        remote: RemoteArgs,
        report: Callable[[str, str], None] = lambda label, value: None,
    ) -> None:
        """Connect to a server, and check it before anything is spent on it.

        Args:
            runtime: What the server must run.
            remote: Where it is.
            report: Told how the server is, in few words.

        Raises:
            EsrError: The server does not answer, does not fit, or is not trusted.
        """
        super().__init__(runtime, remote.sae_rows)
        key = remote.api_key or os.environ.get(KEY_ENV)
        assert remote.base_url is not None  # whoever starts servers knows which one
        url = remote.base_url
        self._server = Server(url, key, remote.wait, report)
        check_trust(url, remote.trust_server)
        self._found = first_check(self._server, self)
        self._server.check_again = self._check_again
        self._payloads = Payloads(self.sae, self.shape.n_layers)
        self._encoding = threading.Lock()
        self.info = BackendInfo(
            device=f"vllm {url}",
            versions=self._found.versions,
            self_check=self._found.self_check,
            sae_digest=self.sae.digest if self.sae else None,
        )

    def check(self, row: Row | Passage) -> None:
        """Find what is wrong with one request before it is sent.

        Raises:
            EsrError: It is too long, names what is not there, or cannot be done on a server.
        """
        super().check(row)
        made = row.sampling.max_tokens if isinstance(row, Row) else len(row.answer) + 1
        longest = self._found.longest
        if longest is not None and len(row.prompt) + made > longest:
            raise EsrError(
                f"A prompt of {len(row.prompt)} tokens and an answer of {made} exceed the "
                f"{longest} that the vLLM server was started for (--max-model-len)."
            )
        if row.steering is not None:
            self._payloads.check(row.steering.edits)

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows, each in a request of its own; may be called from any thread."""
        return _all_at_once(self._generate, rows)

    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """Read over finished conversations, each in a request that makes one more token."""
        return _all_at_once(self._read, passages)

    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `BackendProtocol.mean_residuals`; the residuals come back whole."""
        self.check_answers(passages, layer)

        def one(passage: Passage) -> tuple[NDArray[np.float32], float]:
            prompt, whole = len(passage.prompt), (*passage.prompt, *passage.answer)
            span = Span(positions="generated")
            args = residual_args(layer, span, prompt, self.shape.n_layers)
            saved = Saved(self._ask(whole, 1, args))
            x = saved.read(0, prompt, len(whole))
            assert x is not None
            return x.mean(0).numpy(), float(x.norm(dim=-1).mean())

        means, norms = zip(*_all_at_once(one, passages), strict=True)
        return np.stack(means), np.array(norms, dtype=np.float32)

    def _generate(self, row: Row) -> Generated:
        args, own = self._payloads.hook_args(row), dict[str, Any]()
        if self._found.our_sampler:
            args |= sampling_args(row.sampling)
        else:
            own = _server_sampling(row)
        answer = self._ask(row.prompt, row.sampling.max_tokens, args, own)
        choice = answer["choices"][0]
        tokens = [int(token) for token in choice["token_ids"]]
        by_model = bool(tokens) and tokens[-1] in self.ends
        if by_model:
            tokens.pop()
        fed, saved = fed_tokens(row, len(tokens), by_model), Saved(answer)
        readouts = []
        for index, readout in enumerate(row.steering.readouts if row.steering else ()):
            value, count = self._reading(saved, row, index, readout, fed)
            readouts.append(readout_result(readout, value, count))
        return generated(row, tokens, by_model, saved.counts(fed), readouts, saved.finite)

    def _read(self, passage: Passage) -> Reading:
        whole = (*passage.prompt, *passage.answer)
        saved = Saved(self._ask(whole, 1, self._payloads.hook_args(passage)))
        values = []
        for index, readout in enumerate(passage.steering.readouts):
            value, _ = self._reading(saved, passage, index, readout, len(whole))
            values.append(read_value(readout, value, self.sae))
        return reading(passage, values, saved.counts(len(whole)))

    def _ask(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        args: dict[str, str],
        sampling: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._found.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            # Ends are the model's as the client knows them, whatever the server's defaults are.
            "ignore_eos": True,
            "stop_token_ids": self.ends,
            "return_token_ids": True,
            **(sampling or {}),
        }
        if args:
            body["vllm_xargs"] = args
        return self._server.post_patiently(COMPLETIONS, body)

    def _reading(
        self, saved: Saved, row: Steered, index: int, readout: Readout, fed: int
    ) -> tuple[Tensor | None, int]:
        """A readout's value, None without a position, and its number of positions."""
        assert row.steering is not None
        start, stop = readout.bounds(len(row.prompt), row.steering.runtime.skip_first)
        series = saved.read(index, start, fed if stop is None else min(stop, fed))
        if series is None:
            return None, 0
        if self._payloads.reads_residuals(readout):
            series = self._encode(readout, series)
        return reduced(series, readout.reduce), len(series)

    def _encode(self, readout: Readout, residuals: Tensor) -> Tensor:
        assert self.sae is not None
        with self._encoding:  # the SAE is loaded once, whoever asks first
            encode: EncodeFn = (
                self.sae.whole_encoder()
                if readout.latents == "all"
                else self.sae.encoder(readout.latents)
            )
            with torch.inference_mode():
                return encode(residuals).float()

    def _check_again(self) -> None:
        self._found = check_server(self._server, self)


def _server_sampling(row: Row) -> dict[str, Any]:
    """The row's settings for vLLM's own sampler, where ours is not on the server.

    Greedy tokens are the same; sampled ones come from another stream of random numbers.
    """
    wanted = row.sampling
    return {
        "temperature": wanted.temperature,
        "top_p": 1.0 if wanted.top_p is None else wanted.top_p,
        "top_k": 0 if wanted.top_k is None else wanted.top_k,
        "min_p": 0.0,  # what a request leaves open, the server takes from the model's own settings
        "repetition_penalty": wanted.repetition_penalty,
        "seed": wanted.seed,
    }


def _all_at_once(one: Callable[[Request], Result], requests: Sequence[Request]) -> list[Result]:
    if len(requests) == 1:
        return [one(requests[0])]
    with ThreadPoolExecutor(max_workers=len(requests) or 1) as threads:
        return list(threads.map(one, requests))
