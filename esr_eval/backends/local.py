"""The local backend: nnsight around transformers, one batch of rows with different edits."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from esr_eval.backends.base import BackendInfo, Generated, Row
from esr_eval.backends.decoding import ChooseTokens, Decoding, EndRows
from esr_eval.backends.layout import decoder_layers_path, descend
from esr_eval.backends.loading import load_model, read_shape
from esr_eval.backends.plan import BatchPlan, ReadoutRecorder, load_vector, plan_batch
from esr_eval.digests import folder_digest
from esr_eval.errors import EsrError
from esr_eval.sae import SparseSAE, open_sae
from esr_eval.spec import AddVector, Readout, Runtime
from esr_eval.subjects import check_layer

SELF_CHECK_SHARE = 0.5
"""Part of the residual's norm that the self-check adds: enough to move any model's logits."""


class LocalBackend:
    """A model in this process, steered through nnsight."""

    def __init__(self, runtime: Runtime, device: str | None = None) -> None:
        """Load the model and prove that an edit reaches its logits.

        Args:
            runtime: What to load; the layers and the SAE are checked before the weights load.
            device: transformers device map; None picks one.

        Raises:
            EsrError: Something does not fit or cannot be loaded.
        """
        self.runtime = runtime
        # The loop over decoding steps is open by design, and nnsight warns when it ends. Not in a
        # `catch_warnings` around each batch: batches run in a thread, and filters are global.
        warnings.filterwarnings("ignore", message=".*was never reached.*", module="nnsight")
        n_layers, d_model = read_shape(runtime)
        for layer in (runtime.steering_layer, runtime.feature_layer):
            if layer is not None:
                check_layer(layer, n_layers, runtime.subject)
        self.sae: SparseSAE | None = None
        if runtime.sae is not None:
            self.sae = open_sae(runtime.sae)
            self.sae.config.check_width(d_model, runtime.subject)
        self._model, self.tokenizer = load_model(runtime, device)
        self._d_model, self._n_layers = d_model, n_layers
        self._ends = _end_tokens(self._model, self.tokenizer)
        self._pad = self.tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._ends[0]
        layers_path = decoder_layers_path(self._model)
        self._layers = descend(self._model, layers_path)
        self._lm = TransformersModel(self._model, tokenizer=self.tokenizer, task="text-generation")
        self._traced_layers = descend(self._lm, layers_path)
        self.info = BackendInfo(
            device=str(self._model.device),
            versions={p: version(p) for p in ("nnsight", "sae-lens", "torch", "transformers")},
            self_check=self._self_check(),
            sae_digest=folder_digest(self.sae.config.folder) if self.sae else None,
        )

    def encode_chat(self, messages: Sequence[dict[str, str]], prefill: str | None) -> list[int]:
        """Token ids of a chat, ending where the model's answer begins or, prefilled, goes on."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        # The template writes the begin-of-text token itself where the model has one.
        encoded = self.tokenizer(text + (prefill or ""), add_special_tokens=False)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def check(self, row: Row) -> None:
        """Find what is wrong with one request before it joins a batch.

        Raises:
            EsrError: It is too long, or names a layer, latent or vector that is not there.
        """
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        asked = len(row.prompt) + row.sampling.max_tokens
        if longest is not None and asked > longest:
            raise EsrError(
                f"A prompt of {len(row.prompt)} tokens and {row.sampling.max_tokens} more to "
                f"generate exceed the {longest} that {self.runtime.subject} can hold; "
                "lower --max-tokens."
            )
        if row.steering is None:
            return
        for part in (*row.steering.edits, *row.steering.readouts):
            check_layer(part.layer, self._n_layers, self.runtime.subject)
            if isinstance(part, AddVector):
                width = load_vector(part).shape[-1]
                if width != self._d_model:
                    raise EsrError(
                        f"The vector has {width} values, but the residual stream of "
                        f"{self.runtime.subject} has width {self._d_model}."
                    )
            elif self.sae is not None:
                for latent in part.latents if isinstance(part, Readout) else (part.latent,):
                    self.sae.config.check_latent(latent)

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows at once; a row's tokens do not depend on the others."""
        ids, mask = _left_pad([row.prompt for row in rows], self._pad, self._model.device)
        decoding = Decoding(rows, mask, self._ends)
        plan = plan_batch(rows, self.sae, self._layer_device)
        receipts = torch.zeros(len(rows), dtype=torch.int64)
        recorder = ReadoutRecorder(plan)
        with torch.inference_mode():
            out = self._trace(ids, mask, decoding, plan, receipts, recorder)
        results = []
        for b, row in enumerate(rows):
            made = int(decoding.generated[b])
            by_model = bool(decoding.ended_by_model[b])
            # The last token is fed back only when the model went on to choose an end token.
            fed = len(row.prompt) + made - (0 if by_model else 1)
            results.append(
                Generated(
                    tokens=out[b, ids.shape[1] :][:made].tolist(),
                    stop_reason="stop" if by_model else "max_tokens",
                    edited_positions=int(receipts[b]),
                    expected_positions=expected_positions(row, fed),
                    readouts=recorder.results(b),
                )
            )
        return results

    def _trace(
        self,
        ids: Tensor,
        mask: Tensor,
        decoding: Decoding,
        plan: BatchPlan,
        receipts: Tensor,
        recorder: ReadoutRecorder,
    ) -> Tensor:
        """Run transformers' generation with the plan's edits applied at every forward pass."""
        longest = int(decoding.limits.max())
        settings = GenerationConfig(
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=self._ends,
            pad_token_id=self._pad,
            use_cache=True,
        )
        processors = LogitsProcessorList([ChooseTokens(decoding)])
        criteria = StoppingCriteriaList([EndRows(decoding)])
        layers = self._traced_layers
        with self._lm.generate(
            generation_config=settings, logits_processor=processors, stopping_criteria=criteria
        ) as tracer:
            with tracer.invoke({"input_ids": ids, "attention_mask": mask}):
                for _ in tracer.iter[:] if plan.layers else ():
                    for layer in plan.layers:
                        x = _residual(layers[layer].output)
                        at = decoding.positions().to(x.device)
                        if layer in plan.edits:
                            edits = plan.edits[layer]
                            x[:] = (x.float() + edits.delta(x, at)).to(x.dtype)
                            receipts += edits.touched(at).sum(-1).cpu()
                        for read in plan.reads.get(layer, ()):
                            recorder.record(read, x, at)
            with tracer.invoke():
                out = tracer.result.save()
        result: Tensor = out
        return result

    def _layer_device(self, layer: int) -> torch.device:
        device: torch.device = next(self._layers[layer].parameters()).device
        return device

    def _self_check(self) -> str:
        """Prove that an edit at the steering layer reaches the next token's logits.

        Raises:
            EsrError: It does not: this model's steering would be silently lost.
        """
        layer = self.runtime.steering_layer
        if layer is None:
            layer = self._n_layers // 2
        prompt = self.encode_chat([{"role": "user", "content": "Hello"}], None)
        ids = torch.tensor([prompt], device=self._model.device)
        layers, model = self._traced_layers, self._lm
        with torch.inference_mode():
            with model.trace({"input_ids": ids}):
                plain = model.output.logits[0, -1].float().save()
            with model.trace({"input_ids": ids}):
                x = _residual(layers[layer].output)
                size = x[0, -1].float().norm() * SELF_CHECK_SHARE / self._d_model**0.5
                x[:] = (x.float() + size).to(x.dtype)
                edited = model.output.logits[0, -1].float().save()
        moved = float((edited - plain).abs().max())
        if not moved > 0:
            raise EsrError(
                f"An edit at layer {layer} of {self.runtime.subject} does not reach its logits: "
                "nnsight and this architecture do not fit together, and steering would be "
                "silently lost. Please report the model and the versions of nnsight, transformers."
            )
        return f"an edit at layer {layer} moved the logits by up to {moved:.2f}"


def expected_positions(row: Row, fed: int) -> int:
    """How many positions a row's edits must have touched, counted per layer.

    Args:
        row: The request.
        fed: Number of tokens that went through the model, prompt included.
    """
    if row.steering is None:
        return 0
    touched: dict[int, set[int]] = {}
    for edit in row.steering.edits:
        start, stop = edit.bounds(len(row.prompt), row.steering.runtime.skip_first)
        touched.setdefault(edit.layer, set()).update(range(start, min(fed, stop or fed)))
    return sum(len(positions) for positions in touched.values())


def _residual(output: Any) -> Tensor:
    """The residual stream in a decoder layer's output; some architectures return a tuple."""
    x: Tensor = output[0] if isinstance(output, tuple) else output
    return x


def _left_pad(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for b, prompt in enumerate(prompts):
        ids[b, width - len(prompt) :] = torch.tensor(prompt)
        mask[b, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a response: the model's own, or else its tokenizer's."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return [int(ends)] if isinstance(ends, int) else [int(end) for end in ends]
