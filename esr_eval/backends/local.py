"""The local backend: nnsight around transformers, one batch of rows with different edits."""

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from nnsight import TransformersModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from esr_eval._util.threads import threads_taking_short_turns
from esr_eval.backends.base import Backend, BackendInfo
from esr_eval.errors import EsrError
from esr_eval.model.layout import Stack
from esr_eval.model.loading import attention_in_use, load_model
from esr_eval.sae.sparse import Fit
from esr_eval.spec import Runtime
from esr_eval.steering.decoding import ChooseTokens, Decoding, EndRows, greedy_settings
from esr_eval.steering.kernel import Intervention, residual
from esr_eval.steering.plan import (
    padded,
    padded_passages,
    plan_batch,
    plan_means,
    plan_residuals,
)
from esr_eval.steering.requests import (
    Generated,
    Passage,
    Reading,
    Readings,
    Row,
    counts_of,
    generated,
    generated_readouts,
    means,
    out_of_range,
    read_results,
)
from esr_eval.steering.sampling import Scores, compiled_scores

SHARE = 0.6
"""Share of the free memory that rows may take; activations and nnsight need the rest."""


class LocalBackend(Backend):
    """A model in this process, steered through nnsight."""

    def __init__(
        self, runtime: Runtime, device: str | None = None, sae_rows: Path | None = None
    ) -> None:
        """Load the model and prove that an edit reaches its logits.

        Args:
            runtime: What to load; the layers and the SAE are checked before the weights load.
            device: transformers device map; None picks one.
            sae_rows: A file with the rows of the SAE that are needed, in the SAE's place.

        Raises:
            EsrError: Something does not fit or cannot be loaded.
        """
        super().__init__(runtime, sae_rows)
        self._engine = threading.Lock()  # one trace at a time, whether it generates or reads
        # The loop over decoding steps is open by design, and nnsight warns when it ends. Not in a
        # `catch_warnings` around each batch: batches run in a thread, and filters are global.
        warnings.filterwarnings("ignore", message=".*was never reached.*", module="nnsight")
        self._model = load_model(runtime, device)
        # Nothing of the model's own settings is left to be filled in where a request is silent.
        self._model.generation_config = GenerationConfig()
        self._layers = Stack(self._model, self._model).layers
        self._lm = TransformersModel(self._model, tokenizer=self.tokenizer, task="text-generation")
        self._traced = Stack(self._model, self._lm)
        self.info = BackendInfo(
            device=str(self._model.device),
            versions={
                **{p: version(p) for p in ("nnsight", "sae-lens", "torch", "transformers")},
                **({"peft": version("peft")} if runtime.adapter else {}),
                "attention": attention_in_use(self._model),
            },
            self_check=self._self_check(),
            sae_digest=self.sae.digest if self.sae else None,
        )

    def rows_that_fit(self, tokens: int) -> int:
        """How many rows the free memory holds beside the weights; at least 1.

        Args:
            tokens: Of a row, prompt and answer.
        """
        on: dict[torch.device, int] = {}
        for number in range(len(self._layers)):
            device = self._layer_device(number)
            on[device] = on.get(device, 0) + 1
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        cached = 2 * heads * width * self._model.dtype.itemsize  # keys and values
        # Logits are copied a few times, in 32 bits, when the next token is chosen.
        logits = 4 * 4 * config.vocab_size
        return min(
            rows_in(_free(device), layers * cached * tokens + logits)
            for device, layers in on.items()
        )

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows at once; a row's tokens do not depend on the others."""
        return self._generate(rows)[0]

    def _generate(
        self, rows: Sequence[Row], compare: bool = False
    ) -> tuple[list[Generated], float]:
        """Generate; also how far the first two rows' first logits are apart, if asked for."""
        ids, mask = padded([row.prompt for row in rows], self.pad, self._model.device)
        decoding = Decoding(rows, ids, mask, self.ends, compare, self._compiled)
        plan = plan_batch(rows, self.sae, self._layer_device)
        with self._engine, threads_taking_short_turns(), torch.inference_mode():
            out = self._trace(ids, mask, decoding, plan, rows)
        readings, receipts = plan.readings(), plan.receipts()
        results = [
            generated(
                row,
                out[b, ids.shape[1] :][: int(decoding.generated[b])].tolist(),
                bool(decoding.ended_by_model[b]),
                counts_of(b, receipts),
                generated_readouts(row, b, readings),
                bool(decoding.finite[b]),
            )
            for b, row in enumerate(rows)
        ]
        return results, decoding.apart

    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """One forward pass over all passages, each with its own edits and readouts."""
        plan = plan_batch(passages, self.sae, self._layer_device, once=True)
        readings = self._pass_over(passages, plan)
        return read_results(passages, readings, plan.receipts(), self.sae)

    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.mean_residuals`; one forward pass."""
        self.check_answers(passages, layer)
        return means(self._pass_over(passages, plan_means(passages, layer)))

    def sae_fit(self, passages: Sequence[Passage], layer: int) -> Fit:
        """How well the SAE describes a layer's output over answers, unedited.

        One forward pass a passage. Beside the residuals of all answers twice, in float32, this
        takes what `SparseSAE.fit` takes, on the layer's device.

        Args:
            passages: Conversations, of which the answers' tokens count.
            layer: Decoder layer whose output is read.

        Raises:
            EsrError: There is no SAE or only rows of it, no such layer, or an empty answer.
            RuntimeError: A residual is no number.
        """
        if self.sae is None:
            raise EsrError(f"{self.runtime.subject} runs without an SAE, whose fit is asked for.")
        self.sae.check_whole()
        self.check_answers(passages, layer)
        residuals = []
        for passage in passages:
            value, _ = self._pass_over([passage], plan_residuals([passage], layer))[0, 0]
            if value is not None:
                residuals.append(value)
        x = torch.cat(residuals).to(self._layer_device(layer)).float()
        if not bool(x.isfinite().all()):
            raise out_of_range(self.runtime.dtype)
        with self._engine, torch.inference_mode():
            return self.sae.fit(x, layer)

    def _pass_over(self, passages: Sequence[Passage], plan: Intervention) -> Readings:
        ids, mask, at = padded_passages(passages, self.pad, self._model.device)
        layers, receiver = self._traced.layers, self._traced.receiver
        with self._engine, torch.inference_mode():  # noqa: SIM117 - nnsight reads the block
            with self._lm.trace({"input_ids": ids, "attention_mask": mask}):
                for layer in plan.layers:
                    plan.apply(layer, residual(layers[layer].output), at)
                    if layer in plan.edits:
                        plan.confirm(layer, residual(receiver(layer).input))
        return plan.readings()

    def _trace(
        self,
        ids: Tensor,
        mask: Tensor,
        decoding: Decoding,
        plan: Intervention,
        rows: Sequence[Row],
    ) -> Tensor:
        """Run transformers' generation with the batch's edits applied at every forward pass."""
        settings = greedy_settings(decoding.limits, self.ends, self.pad)
        processors = LogitsProcessorList([ChooseTokens(decoding)])
        criteria = StoppingCriteriaList([EndRows(decoding)])
        if self.watch is not None:
            criteria.append(Told(decoding, partial(self.watch, rows)))
        layers, receiver = self._traced.layers, self._traced.receiver
        with self._lm.generate(
            generation_config=settings, logits_processor=processors, stopping_criteria=criteria
        ) as tracer:
            with tracer.invoke({"input_ids": ids, "attention_mask": mask}):
                for _ in tracer.iter[:] if plan.layers else ():
                    for layer in plan.layers:
                        plan.apply(layer, residual(layers[layer].output), decoding.positions())
                        if layer in plan.edits:
                            plan.confirm(layer, residual(receiver(layer).input))
            with tracer.invoke():
                out = tracer.result.save()
        result: Tensor = out
        return result

    @cached_property
    def _compiled(self) -> Scores | None:
        """On a GPU only: on a CPU, compiling takes longer than many a run gains by it."""
        if self._model.device.type != "cuda":
            return None
        # transformers hands logits on in 32 bits.
        vocabulary = self._model.config.get_text_config().vocab_size
        return compiled_scores(vocabulary, torch.float32, self._model.device)

    def _layer_device(self, layer: int) -> torch.device:
        device: torch.device = next(self._layers[layer].parameters()).device
        return device

    def _self_check(self) -> str:
        """Prove, on the way that all samples go, that an edit reaches the next token's logits.

        Raises:
            EsrError: It does not: this model's steering would be silently lost.
        """
        (_, edited), moved = self._generate(self.probe_rows(), compare=True)
        return self.check_probe(moved, edited.edited_positions, edited.expected_positions)


class Told(EndRows):
    """Tells somebody what has been chosen so far, after every step; ends no row by itself."""

    def __init__(self, decoding: Decoding, tell: Callable[[list[list[int]]], None]) -> None:
        """Tell of this batch.

        Args:
            decoding: The batch's state.
            tell: Called with every row's tokens.
        """
        super().__init__(decoding)
        self._tell = tell

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Which rows have ended, (batch,)."""
        chosen = self._decoding.tokens().tolist()
        counts = self._decoding.generated.tolist()
        self._tell([row[:count] for row, count in zip(chosen, counts, strict=True)])
        return super().__call__(input_ids, scores, **kwargs)


def _free(device: torch.device) -> int:
    """Bytes of a device's memory that nobody uses; all but CUDA's GPUs share the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def rows_in(free: int, row: int) -> int:
    """How many rows of so many bytes go into free memory; at least 1."""
    return max(int(SHARE * free) // row, 1)
