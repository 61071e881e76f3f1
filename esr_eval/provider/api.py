"""The Inspect model provider `esr/NAME`: lazy, batched, steered by what a request carries."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput
from inspect_ai.tool import ToolChoice, ToolInfo
from inspect_ai.util import display_counter

from esr_eval.errors import EsrError
from esr_eval.model.weights import gpu_memory_gib
from esr_eval.provider.arguments import ModelArgs
from esr_eval.provider.batching import Batcher
from esr_eval.provider.checks import Check, raise_stops
from esr_eval.provider.conversion import (
    check_finite,
    check_receipt,
    check_settings,
    to_output,
    to_row,
)
from esr_eval.provider.needs import Needs
from esr_eval.spec import Runtime, Steering, fingerprint
from esr_eval.subjects import find_subject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from esr_eval.backends.base import Backend
    from esr_eval.sae.sparse import Fit
    from esr_eval.steering.requests import Generated, Passage, Reading, Row

logger = logging.getLogger(__name__)

DEFAULT_BATCH = 32
"""Rows of one request to a server."""
CPU_ROWS = 64
"""Rows at a time on a CPU, at most: more hardly gain anything, and all wait for the last."""
GPU_ROWS = 256
"""Rows at a time on a GPU, at most."""
PROMPT = 256
"""Tokens that a prompt is taken to have, template and all."""


class DecoderRow(NamedTuple):
    """How long a latent's decoder row is.

    Attributes:
        norm: L2 norm.
        d_model: Width of the residual stream.
        normalised: Whether it is added in units of the residual's own size, as the SAE normalises
            its input.
    """

    norm: float
    d_model: int
    normalised: bool

    def added(self, residual_norm: float) -> float:
        """L2 norm of what strength 1 adds to a residual of this norm."""
        return self.norm * residual_norm / self.d_model**0.5 if self.normalised else self.norm


class ESRModelAPI(ModelAPI):
    """A subject whose SAE latents can be boosted, clamped and read while it generates.

    A request's edits come in `GenerateConfig.extra_body["esr"]` (see `esr_eval.spec.Steering`);
    a request without them is answered by the model as it is.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        **model_args: Any,
    ) -> None:
        """Read the arguments; nothing is loaded until the first request.

        Raises:
            EsrError: The subject or an argument is unknown.
        """
        check_settings(config)
        super().__init__(model_name, base_url, api_key, [], config)
        self.subject = find_subject(model_name)
        self.args = ModelArgs.parse(model_args)
        self.runtime: Runtime = self.args.runtime(self.subject)
        self._backend: Backend | None = None
        self._refused: EsrError | None = None
        self._loading = anyio.Lock()
        self.remote = self.args.remote(base_url, api_key)
        self.needs = Needs(self.subject, self.runtime, self.args, self.remote)
        self._asked = config
        self._chosen = self.args.batch_size or config.max_connections
        size, parallel = self._chosen or self._most_rows(), 1
        if self.runtime.backend == "ndif":
            parallel = self.remote.requests
        elif self.runtime.backend == "vllm":
            size, parallel = 1, size  # the engine batches by itself, and better
        remote = self.runtime.backend != "local"
        # Here a batch runs, and the next one waits while the last is judged.
        self._connections = size * (parallel if remote else 2)
        self._batcher: Batcher[Row, Generated] = Batcher(
            self._run, size, self._show_speed, parallel, abandon=remote
        )
        self._reader: Batcher[Passage, Reading] = Batcher(
            self._run_reading, size, parallel=parallel, abandon=remote
        )
        self._tokens = 0
        self._seconds = 0.0

    def _most_rows(self) -> int:
        """Rows of a batch where nobody chose a number; memory may allow for fewer."""
        if self.runtime.backend != "local":
            return DEFAULT_BATCH
        return GPU_ROWS if self.args.device != "cpu" and gpu_memory_gib() else CPU_ROWS

    def preflight(self, edits_needed: bool = True, beside: Sequence[Check] = ()) -> None:
        """Find what cannot work, in seconds and before any weights load or any trial starts.

        A remote backend connects to its server here, which checks it.

        Args:
            edits_needed: Whether the run boosts, clamps or reads latents.
            beside: What else was looked at, to be told with it.

        Raises:
            EsrError: One or several things stand in the way: all are told.
        """
        self._refused = None  # what stood in the way of an earlier run may be mended
        try:
            raise_stops([*self.checks(edits_needed), *beside])
            if self.runtime.backend != "local" and self._backend is None:
                self._backend = self._load()
        except EsrError as error:
            self._refused = error
            raise

    def checks(self, edits_needed: bool = True) -> list[Check]:
        """Look at everything that this model needs; small files are downloaded at most.

        Args:
            edits_needed: Whether the run boosts, clamps or reads latents.
        """
        return self.needs.checks(edits_needed, connected=self._backend is not None)

    def check_latents(self, latents: Sequence[int]) -> None:
        """Raise an `EsrError` when latents are not there or cannot steer, as far as is known."""
        self.needs.check_latents(latents)

    async def sae_fit(self, chats: Sequence[Sequence[ChatMessage]], layer: int) -> "Fit | None":
        """How well the SAE describes a layer's residuals over answers of the model's own.

        Args:
            chats: Conversations; the last message of each is the assistant's whole answer.
            layer: Decoder layer whose output is read.

        Returns:
            None where not both the model and the whole SAE are on this machine.
        """
        from esr_eval.backends.local import LocalBackend

        backend = await self.ready()
        if not isinstance(backend, LocalBackend) or self.args.sae_rows is not None:
            return None
        passages = self._passages(backend, chats)
        return await anyio.to_thread.run_sync(backend.sae_fit, passages, layer)

    async def mean_residuals(
        self, chats: Sequence[Sequence[ChatMessage]], layer: int
    ) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
        """The unedited residual stream over answers; see `Backend.mean_residuals`.

        Args:
            chats: Conversations; the last message of each is the assistant's whole answer.
            layer: Decoder layer whose output is read.

        Raises:
            EsrError: The model has no such layer, or an answer no tokens or too many.
        """
        backend = await self.ready()
        passages = self._passages(backend, chats)
        for passage in passages:
            backend.check(passage)
        size = self._reader.max_batch
        parts = [
            await anyio.to_thread.run_sync(
                backend.mean_residuals, passages[start : start + size], layer
            )
            for start in range(0, len(passages), size)
        ]
        means, norms = zip(*parts, strict=True)
        return np.concatenate(means), np.concatenate(norms)

    def _passages(
        self, backend: "Backend", chats: Sequence[Sequence[ChatMessage]]
    ) -> "list[Passage]":
        spec = Steering(runtime=self.runtime)
        return [
            backend.passage(
                [{"role": message.role, "content": message.text} for message in chat[:-1]],
                chat[-1].text,
                spec,
            )
            for chat in chats
        ]

    def decoder_row(self, latent: int) -> DecoderRow:
        """How long a latent's decoder row is; downloads the SAE where it is not here.

        Raises:
            EsrError: The run has no SAE, or the SAE no such latent.
        """
        from esr_eval.sae.sparse import open_sae

        if self.runtime.sae is None:
            raise EsrError(f"{self.subject.name} has no SAE: name one with -M sae_release=.")
        loaded = self._backend.sae if self._backend is not None else None
        sae = loaded or open_sae(self.runtime.sae, self.args.sae_rows)
        row = sae.decoder_row(latent)
        return DecoderRow(float(row.norm()), row.shape[0], sae.output_scale is not None)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one chat, steered as the request says.

        Raises:
            EsrError: The request cannot be carried out as it stands.
            RuntimeError: Fewer positions were edited than the tokens call for.
        """
        if tools:
            raise EsrError("The provider esr does not call tools.")
        check_settings(config)
        steering = self._steering(config)
        backend = await self.ready()
        row = to_row(backend, input, config, steering, self.runtime)
        backend.check(row)
        started = time.monotonic()
        generated = await self._batcher.submit(row)
        check_finite(generated, self.runtime)
        check_receipt(generated)
        return to_output(
            self.model_name, backend, row, generated, config, time.monotonic() - started
        )

    async def read(self, messages: Sequence[ChatMessage], steering: Steering) -> "Reading":
        """Read activations over a finished conversation, in one forward pass.

        It is no request to the model in Inspect's sense: nothing is generated, cached or logged;
        arrays belong into a sidecar file (`esr_eval.logs.sidecar`).

        Args:
            messages: The conversation; the last message is the assistant's whole answer, which
                may be empty.
            steering: Edits that are on during the pass, and what to read.

        Raises:
            EsrError: The request cannot be carried out as it stands.
            RuntimeError: Fewer positions were edited than the tokens call for.
        """
        if not messages or messages[-1].role != "assistant":
            raise EsrError("Activations are read over an answer: the last message is no answer.")
        self._check_runtime(steering)
        backend = await self.ready()
        chat = [{"role": message.role, "content": message.text} for message in messages[:-1]]
        passage = backend.passage(chat, messages[-1].text, steering)
        backend.check(passage)
        reading = await self._reader.submit(passage)
        check_receipt(reading)
        return reading

    def _steering(self, config: GenerateConfig) -> Steering | None:
        try:
            steering = Steering.from_extra_body(config.extra_body)
        except ValueError as error:
            raise EsrError(f'extra_body["esr"] is not a steering spec: {error}') from error
        if steering is not None:
            self._check_runtime(steering)
        return steering

    def _check_runtime(self, steering: Steering) -> None:
        if steering.runtime != self.runtime:
            raise EsrError(
                "The request was made for another runtime than this model runs: "
                f"{_difference(steering.runtime, self.runtime)}. Pass the same -M arguments."
            )

    async def ready(self) -> "Backend":
        """The engine, loaded by whoever needs it first.

        Raises:
            EsrError: It cannot be loaded; every later request is told the same.
        """
        async with self._loading:
            if self._refused is not None:
                raise self._refused
            if self._backend is None:
                try:
                    raise_stops(self.needs.checks_here())
                    started = time.monotonic()
                    self._backend = await anyio.to_thread.run_sync(self._load)
                    self._fit_batches(self._backend)
                    seconds = time.monotonic() - started
                    logger.info("Loaded %s in %.0f s.", self.runtime.model, seconds)
                except Exception as error:
                    # Loading again for every sample, or asking a hub that cannot be reached,
                    # takes minutes each and ends alike.
                    self._refused = _remembered(error, self.subject.name)
                    raise self._refused from error
        return self._backend

    def _fit_batches(self, backend: "Backend") -> None:
        """No more rows at a time than memory holds, where nobody chose a number."""
        if self._chosen is None:
            tokens = PROMPT + (self._asked.max_tokens or self.subject.max_tokens or 512)
            if (rows := backend.rows_that_fit(tokens)) is not None:
                rows = min(rows, self._batcher.max_batch)
                self._batcher.max_batch = self._reader.max_batch = rows
                logger.info("Batches of up to %d rows fit.", rows)

    def _load(self) -> "Backend":
        if self.runtime.sae is not None:
            from esr_eval.sae.sparse import open_sae

            # One of a registry is here only now.
            self.needs.check_sae(open_sae(self.runtime.sae, self.args.sae_rows).config)
        if self.runtime.backend == "ndif":
            from esr_eval.backends.ndif.backend import NDIFBackend

            return NDIFBackend(self.runtime, self.remote, _show)
        if self.runtime.backend == "vllm":
            from esr_eval.backends.vllm.backend import VLLMBackend
            from esr_eval.servers.vllm import own_server

            url = self.remote.base_url or own_server(self.runtime, _show)
            return VLLMBackend(self.runtime, replace(self.remote, base_url=url), _show)
        from esr_eval.backends.local import LocalBackend

        return LocalBackend(self.runtime, self.args.device, self.args.sae_rows)

    def _run(self, rows: "Sequence[Row]") -> "list[Generated]":
        assert self._backend is not None
        generated = self._backend.generate(rows)
        self._tokens += sum(len(one.tokens) for one in generated)
        return generated

    def _run_reading(self, passages: "Sequence[Passage]") -> "list[Reading]":
        assert self._backend is not None
        return self._backend.read(passages)

    def _show_speed(self, batch: int, seconds: float) -> None:
        self._seconds += seconds
        display_counter("Tokens/s", f"{self._tokens / self._seconds:.0f}")
        display_counter("Batch", str(batch))

    async def count_text_tokens(self, text: str) -> int:
        """Count with the subject's own tokenizer."""
        return (await self.ready()).count_tokens(text)

    def max_tokens(self) -> int | None:
        """The subject's usual length of response."""
        return self.subject.max_tokens

    def max_connections(self) -> int:
        """As many samples at a time as the engine can have under way."""
        return self._connections

    def connection_key(self) -> str:
        """One pool per model and runtime."""
        return fingerprint(self.runtime)

    def collapse_user_messages(self) -> bool:
        """Chat templates want user and assistant to take turns."""
        return True

    def close(self) -> None:
        """Let go of the weights."""
        self._backend = None


def _show(caption: str, value: str) -> None:
    """Show a counter from a worker thread; Inspect's display belongs to the event loop."""
    with suppress(RuntimeError):  # no event loop, no display
        anyio.from_thread.run_sync(display_counter, caption, value)


def _remembered(error: Exception, subject: str) -> EsrError:
    if isinstance(error, EsrError):
        return error
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return EsrError(f"{subject} could not be loaded ({type(error).__name__}: {first[:200]}).")


def _difference(asked: Runtime, have: Runtime) -> str:
    theirs, ours = asked.model_dump(), have.model_dump()
    return ", ".join(
        f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if theirs[key] != ours[key]
    )
