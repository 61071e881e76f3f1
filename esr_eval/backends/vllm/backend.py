"""The vLLM backend: requests to a vLLM server, each with its own edits, readouts and seed."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.backends.base import Backend, BackendInfo
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm import ROWS_PATH, UNKNOWN_ROWS
from esr_eval.backends.vllm.client import Server
from esr_eval.backends.vllm.payload import (
    Found,
    Rows,
    rows_body,
    sampling_args,
    steering_args,
)
from esr_eval.backends.vllm.preflight import KEY_ENV, check_server, first_check
from esr_eval.errors import EsrError
from esr_eval.spec import Clamp, Runtime
from esr_eval.steering.kernel import Intervention, reduced
from esr_eval.steering.plan import plan_batch, plan_means
from esr_eval.steering.requests import (
    Generated,
    Passage,
    Reading,
    Readings,
    Row,
    fed_tokens,
    generated,
    generated_readouts,
    means,
    read_value,
    reading,
)

CPU = torch.device("cpu")
COMPLETIONS = "/v1/completions"
Request = TypeVar("Request")
Result = TypeVar("Result")


class VLLMBackend(Backend):
    """A model on a vLLM server; the server's continuous batching mixes the requests.

    Rows of the SAE that a request names are sent to the server once. A readout of the whole SAE, or
    of one whose latents depend on each other, brings the residual stream of the positions it reads
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
            EsrError: The server does not answer, or does not fit.
        """
        super().__init__(runtime, remote.sae_rows)
        key = remote.api_key or os.environ.get(KEY_ENV)
        assert remote.base_url is not None  # whoever starts servers knows which one
        url = remote.base_url
        self._server = Server(url, key, remote.wait, report)
        self._sent: set[str] = set()
        """Digests of rows that the server was given; it may have lost them since."""
        self._sending = threading.Lock()
        self._facts = first_check(self._server, self)
        self._server.check_again = self._check_again
        self._encoding = threading.Lock()
        self.info = BackendInfo(
            device=f"vllm {url}",
            versions=self._facts.versions,
            self_check=self._facts.self_check,
            sae_digest=self.sae.digest if self.sae else None,
        )

    def check(self, row: Row | Passage) -> None:
        """Find what is wrong with one request before it is sent.

        Raises:
            EsrError: It is too long, names what is not there, or cannot be done on a server.
        """
        super().check(row)
        made = row.sampling.max_tokens if isinstance(row, Row) else len(row.answer) + 1
        longest = self._facts.longest
        if longest is not None and len(row.prompt) + made > longest:
            raise EsrError(
                f"A prompt of {len(row.prompt)} tokens and an answer of {made} exceed the "
                f"{longest} that the vLLM server was started for (--max-model-len)."
            )
        edits = row.steering.edits if row.steering else ()
        if any(isinstance(edit, Clamp) for edit in edits) and not self.has_single_latents:
            assert self.sae is not None
            raise EsrError(
                f"A clamp needs the activation of its latent, and under an SAE of architecture "
                f"'{self.sae.config.architecture}' that takes the whole SAE, which is not sent to "
                "a vLLM server: use boosts, or the local backend."
            )

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows, each in a request of its own; may be called from any thread."""
        return _all_at_once(self._generate, rows)

    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """Read over finished conversations, each in a request that makes one more token."""
        return _all_at_once(self._read, passages)

    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.mean_residuals`; the residuals come back whole."""
        self.check_answers(passages, layer)

        def one(passage: Passage) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            plan, whole = plan_means([passage], layer), (*passage.prompt, *passage.answer)
            saved = Found(self._ask(whole, 1, plan))
            return means(self._readings(saved, plan, len(whole)))

        residuals, norms = zip(*_all_at_once(one, passages), strict=True)
        return np.concatenate(residuals), np.concatenate(norms)

    def _generate(self, row: Row) -> Generated:
        plan = plan_batch([row], self.sae, lambda layer: CPU)
        if self.runtime.sampler == "esr":
            args, own = sampling_args(row.sampling), dict[str, Any]()
        else:
            args, own = {}, _server_sampling(row)
        answer = self._ask(row.prompt, row.sampling.max_tokens, plan, args, own)
        choice = answer["choices"][0]
        tokens = [int(token) for token in choice["token_ids"]]
        by_model = bool(tokens) and tokens[-1] in self.ends
        if by_model:
            tokens.pop()
        fed, saved = fed_tokens(row, len(tokens), by_model), Found(answer)
        readouts = generated_readouts(row, 0, self._readings(saved, plan, fed))
        return generated(row, tokens, by_model, saved.counts(fed), readouts, saved.finite)

    def _read(self, passage: Passage) -> Reading:
        plan = plan_batch([passage], self.sae, lambda layer: CPU, once=True)
        whole = (*passage.prompt, *passage.answer)
        saved = Found(self._ask(whole, 1, plan))
        readings = self._readings(saved, plan, len(whole))
        values = [
            read_value(readout, readings[0, index][0], self.sae)
            for index, readout in enumerate(passage.steering.readouts)
        ]
        return reading(passage, values, saved.counts(len(whole)))

    def _ask(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        plan: Intervention,
        args: Mapping[str, str] = MappingProxyType({}),
        sampling: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._facts.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            # Ends are the model's as the client knows them, whatever the server's defaults are.
            "ignore_eos": True,
            "stop_token_ids": self.ends,
            "return_token_ids": True,
            **sampling,
        }
        steering, rows = steering_args(plan)
        if extra := {**steering, **args}:
            body["vllm_xargs"] = extra
        while True:
            self._give(rows)
            try:
                answer = self._server.post_patiently(COMPLETIONS, body)
            except EsrError as refusal:
                if UNKNOWN_ROWS not in refusal.message:
                    raise
                self._sent.difference_update(rows)  # it was restarted, or made room for others
                continue
            if steering and not Found(answer).steered:
                raise RuntimeError("The vLLM server did not steer a request, and says so.")
            return answer

    def _give(self, rows: Rows) -> None:
        """Give the server the rows that it does not have yet."""
        with self._sending:
            new = {digest: row for digest, row in rows.items() if digest not in self._sent}
            if new:
                self._server.post_patiently(ROWS_PATH, rows_body(new))
                self._sent.update(new)

    def _readings(self, saved: Found, plan: Intervention, fed: int) -> Readings:
        """What the plan's readouts come to, over the `fed` tokens that went through the model."""
        found: dict[tuple[int, int], tuple[Tensor | None, int]] = {}
        for read in (read for reads in plan.reads.values() for read in reads):
            series = saved.read(read.key[1], read.start, min(read.stop, fed))
            if series is None:
                found[read.key] = None, 0
                continue
            if read.encode is not None:
                with self._encoding, torch.inference_mode():  # a whole SAE, one text at a time
                    series = read.encode(series).float()
            found[read.key] = reduced(series, read.how), len(series)
        return found

    def _check_again(self) -> None:
        self._facts = check_server(self._server, self)


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
