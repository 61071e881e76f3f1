"""What a request to NDIF says: traced blocks over a model without weights, as bytes.

The blocks below never run here: nnsight takes them from this file's source and sends them with
the batch's work (`kernel.py`). They touch the model at the decoder layers and at the last linear
layer only, never through a hook of transformers' own loop, as NDIF runs a stranger's code in
another process than the model, where such hooks could not reach the batch's state.
"""

import threading
from typing import Any

import nnsight
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from torch import Tensor

from esr_eval.backends.chat import Chat
from esr_eval.errors import EsrError
from esr_eval.model.layout import Stack, descend
from esr_eval.model.loading import attention_of, model_source
from esr_eval.steering.decoding import Decoding, greedy_settings
from esr_eval.steering.kernel import Work, force, residual, softcapped
from esr_eval.subjects import embedded_path

SENT_BY_VALUE = (
    "esr_eval.sae.encoder",
    "esr_eval.steering.edits",
    "esr_eval.steering.sampling",
    "esr_eval.steering.decoding",
    "esr_eval.steering.kernel",
)
"""Modules of this project whose code travels with a request."""
LOGIT_SCALES = ("logits_scaling", "logit_scale")
"""Settings by which an architecture changes its logits after the last linear layer."""


class RemoteModel:
    """A subject as NDIF knows it: its modules and their names, without a single weight.

    Attributes:
        key: nnsight's name of the deployed model.
        repository: Its Hugging Face id or folder.
        env: What the server sets before it runs a request: attention, adapter.
    """

    def __init__(self, chat: Chat) -> None:
        """Build the model's tree from its config.

        Raises:
            EsrError: The architecture cannot be steered remotely.
        """
        runtime = chat.runtime
        source, extra = model_source(runtime)
        self.repository = str(source)
        # Otherwise nnsight asks the hub how the id is spelled, which takes a network.
        huggingface._ID_CACHE.setdefault(self.repository, self.repository)
        adapter = None if runtime.adapter is None else str(embedded_path(runtime.adapter))
        self._lm = TransformersModel(
            self.repository,
            tokenizer=chat.tokenizer,
            task="text-generation",
            peft=adapter,
            **attention_of(runtime),
            **extra,
        )
        self.key = str(self._lm.to_model_key())
        self.env: dict[str, Any] = self._lm._remoteable_get_env()
        module = self._lm._module
        config = module.config.get_text_config()
        scale = next((s for s in LOGIT_SCALES if getattr(config, s, None) not in (None, 1)), None)
        head = module.get_output_embeddings()
        head_path = next((name for name, one in module.named_modules() if one is head), None)
        if scale is not None or head_path is None:
            raise EsrError(
                f"{runtime.model} computes its logits in a way that the NDIF backend does not "
                "know; run it with -M backend=local or vllm."
            )
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._stack = Stack(module, self._lm)
        self._head = descend(self._lm, head_path)
        self._ends, self._pad = chat.ends, chat.pad
        self._tracing = threading.Lock()  # nnsight's tree has one interleaver
        for name in SENT_BY_VALUE:
            nnsight.ndif.register(name)

    def generate(self, ids: Tensor, mask: Tensor, decoding: Decoding, work: Work) -> bytes:
        """A request that generates for a batch.

        Args:
            ids: Left-padded prompts, (batch, position).
            mask: Their attention mask.
            decoding: How their tokens are chosen; nothing chosen yet.
            work: What is edited and read; nothing done yet.

        Returns:
            The request's payload. Its answer holds `out`: tokens (batch, steps), what the model's
            own loop returned (batch, prompt + steps), generated, ended, finite (batch,), receipts,
            readings, how far the first two rows' first logits are apart (where `decoding`
            compares them), and the logits' dtype.
        """
        settings = greedy_settings(decoding.limits, self._ends, self._pad)
        lm, layers, receivers = self._lm, self._stack.layers, self._receivers(work)
        head, cap, made = self._head, self._cap, _Payload()
        with self._tracing:  # noqa: SIM117 - nnsight reads the block from the source
            with lm.generate(generation_config=settings, backend=made) as tracer:
                with tracer.invoke({"input_ids": ids, "attention_mask": mask}):
                    for _ in tracer.iter[:]:
                        for layer in work.layers:
                            x = residual(layers[layer].output)
                            work.visit(layer, x, decoding.to(x.device).positions())
                            if layer in receivers:
                                work.arrive(layer, residual(receivers[layer].input))
                        logits = head.output
                        last = softcapped(logits[:, -1], cap)
                        force(logits, decoding.to(last.device).choose(last))
                with tracer.invoke():
                    looped = tracer.result
                    out = nnsight.save(  # noqa: F841 - sent back by its name
                        {
                            "tokens": decoding.tokens().cpu(),
                            "looped": looped.cpu(),
                            "generated": decoding.generated.cpu(),
                            "ended": decoding.ended_by_model.cpu(),
                            "finite": decoding.finite.cpu(),
                            "receipts": work.receipts(),
                            "readings": work.readings(),
                            "apart": decoding.apart,
                            "dtype": str(logits.dtype),
                        }
                    )
        return made.payload

    def read(self, ids: Tensor, mask: Tensor, at: Tensor, work: Work) -> bytes:
        """A request that reads over finished texts in one forward pass.

        Args:
            ids: Right-padded texts, (batch, position).
            mask: Their attention mask.
            at: Row-relative position of every column, -1 at padding.
            work: What is edited and read; nothing done yet.

        Returns:
            The request's payload. Its answer holds `out`: receipts, readings.
        """
        lm, layers, receivers = self._lm, self._stack.layers, self._receivers(work)
        made = _Payload()
        with self._tracing:  # noqa: SIM117 - nnsight reads the block from the source
            with lm.trace(backend=made) as tracer:
                with tracer.invoke({"input_ids": ids, "attention_mask": mask}):
                    for layer in work.layers:
                        work.visit(layer, residual(layers[layer].output), at)
                        if layer in receivers:
                            work.arrive(layer, residual(receivers[layer].input))
                    found = {"receipts": work.receipts(), "readings": work.readings()}
                    out = nnsight.save(found)  # noqa: F841 - sent back by its name
        return made.payload

    def _receivers(self, work: Work) -> dict[int, Any]:
        """Where the edits of each layer have to arrive."""
        return {layer: self._stack.receiver(layer) for layer in work.edits}


class _Payload(Backend):  # type: ignore[misc]
    """In the place of nnsight's backends: turns a traced block into bytes and sends nothing."""

    payload: bytes

    def __call__(self, tracer: Any) -> None:
        self.payload = RequestModel.serialize(tracer, compress=True)
