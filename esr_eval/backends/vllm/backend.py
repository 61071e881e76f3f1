"""The vLLM backend: requests to a vLLM server, each with its own edits, readouts and seed."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from esr_eval.backends.base import Backend, BackendInfo
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm import ROWS_PATH, UNKNOWN_ROWS
from esr_eval.backends.vllm.client import Server
from esr_eval.backends.vllm.payload import Found, request_body, spans
from esr_eval.backends.vllm.preflight import at_once, check_server
from esr_eval.backends.vllm.wire import Row as SAERow
from esr_eval.backends.vllm.wire import rows_body
from esr_eval.errors import EsrError
from esr_eval.spec import Clamp, Runtime
from esr_eval.steering.kernel import Intervention
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
    read_results,
)
from esr_eval.steering.sampling import Sampling

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
        self._server = Server(remote, report)
        self._sent: set[str] = set()
        """Digests of rows that the server was given; it may have lost them since."""
        self._sending = threading.Lock()
        with at_once(self._server):
            self._check_server()
        self._server.check_again = self._check_server
        self._encoding = threading.Lock()
        self.info = BackendInfo(
            device=f"vllm {remote.base_url}",
            versions=self._facts.versions,
            self_check=self._facts.self_check,
            sae_digest=self.sae.digest if self.sae else None,
        )

    def _check_server(self) -> None:
        self._facts = check_server(self._server, self)

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
            _, found = self._ask(whole, 1, plan)
            return means(self._readings(found, plan, len(whole)))

        residuals, norms = zip(*_all_at_once(one, passages), strict=True)
        return np.concatenate(residuals), np.concatenate(norms)

    def _generate(self, row: Row) -> Generated:
        plan, most = plan_batch([row], self.sae, lambda layer: CPU), row.sampling.max_tokens
        sampling = row.sampling if self.runtime.sampler == "esr" else None
        own = {} if sampling else _server_sampling(row.sampling)
        answer, found = self._ask(row.prompt, most, plan, sampling, own)
        tokens = [int(token) for token in answer["choices"][0]["token_ids"]]
        by_model = bool(tokens) and tokens[-1] in self.ends
        if by_model:
            tokens.pop()
        fed = fed_tokens(row, len(tokens), by_model)
        readouts = generated_readouts(row, 0, self._readings(found, plan, fed))
        return generated(row, tokens, by_model, found.counted(fed), readouts, found.finite)

    def _read(self, passage: Passage) -> Reading:
        plan = plan_batch([passage], self.sae, lambda layer: CPU, once=True)
        whole = (*passage.prompt, *passage.answer)
        _, found = self._ask(whole, 1, plan)
        counts = found.counted(len(whole)).items()
        receipts = {layer: (torch.tensor([n]), torch.tensor([held])) for layer, (n, held) in counts}
        readings = self._readings(found, plan, len(whole))
        return read_results([passage], readings, receipts, self.sae)[0]

    def _ask(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        plan: Intervention,
        sampling: Sampling | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], Found]:
        body, rows = request_body(self._facts.model, prompt, max_tokens, plan, sampling)
        body |= {"stop_token_ids": self.ends, "return_token_ids": True, **(own or {})}
        while True:
            self._give(rows)
            try:
                answer = self._server.post_patiently(COMPLETIONS, body)
            except EsrError as refusal:
                if UNKNOWN_ROWS not in refusal.message:
                    raise
                self._sent.difference_update(rows)  # it was restarted, or made room for others
                continue
            found = Found.in_answer(answer)
            if plan.layers and found.fed is None:
                raise RuntimeError("The vLLM server did not steer a request, and says so.")
            return answer, found

    def _give(self, rows: Mapping[str, SAERow]) -> None:
        """Give the server the rows that it does not have yet."""
        with self._sending:
            new = {digest: row for digest, row in rows.items() if digest not in self._sent}
            if new:
                self._server.post_patiently(ROWS_PATH, rows_body(new))
                self._sent.update(new)

    def _readings(self, found: Found, plan: Intervention, fed: int) -> Readings:
        """What the plan's readouts come to, over the `fed` tokens that went through the model."""
        here = Intervention(1, {}, plan.reads)
        for layer, (start, stop) in spans(plan).items():
            if start >= min(stop, fed):
                continue
            residuals = found.residuals(layer, start, min(stop, fed))
            at = torch.arange(start, start + len(residuals))
            with self._encoding, torch.inference_mode():  # a whole SAE, one text at a time
                here.apply(layer, residuals.unsqueeze(0), at.unsqueeze(0))
        return here.readings()


def _server_sampling(wanted: Sampling) -> dict[str, Any]:
    """A row's settings for vLLM's own sampler.

    Greedy tokens are the same; sampled ones come from another stream of random numbers.
    """
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
