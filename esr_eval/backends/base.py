"""What every backend does: chats to tokens and checks on the client, rows in, receipts out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError
from esr_eval.model.adapters import check_adapter
from esr_eval.model.chat import Answers, Response, render, template_settings, turn_end
from esr_eval.model.loading import (
    Shape,
    empty_model,
    load_tokenizer,
    read_ends,
    read_shape,
)
from esr_eval.sae.sparse import ELEMENTWISE, SparseSAE, open_sae
from esr_eval.spec import AddVector, Boost, Clamp, Edit, Readout, Runtime, Steering
from esr_eval.steering.plan import load_vector
from esr_eval.steering.requests import Generated, Passage, Reading, Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import check_layer

PROBE_STRENGTH = 1000.0
"""Norm of the vector that a self-check adds: more than any model's precision rounds away."""
PROBE_TOKENS = 4


@dataclass
class BackendInfo:
    """What a loaded backend tells about itself, for the log."""

    device: str
    versions: dict[str, str] = field(default_factory=dict)
    self_check: str = ""
    sae_digest: str | None = None


class Chat:
    """The client's side of a subject: its tokenizer, its shape, and its SAE's single rows.

    Attributes:
        runtime: What is being run.
        tokenizer: The model's own.
        shape: Layers, width and context, from the model's config.
        sae: The runtime's SAE, of which single rows are read; None without one.
        template: What the chat template gets beside the conversation.
        ends: Ids that end a response.
        pad: Id that fills shorter rows of a batch.
    """

    def __init__(self, runtime: Runtime, sae_rows: Path | None = None) -> None:
        """Read config, tokenizer and SAE config; check that layers and SAE fit the model.

        Args:
            runtime: What is being run.
            sae_rows: A file with the rows of the SAE that are needed, in the SAE's place.

        Raises:
            EsrError: Something does not fit or cannot be loaded.
        """
        self.runtime = runtime
        self.shape: Shape = read_shape(runtime)
        for layer in (runtime.steering_layer, runtime.feature_layer):
            if layer is not None:
                check_layer(layer, self.shape.n_layers, runtime.subject)
        self.sae: SparseSAE | None = None
        if runtime.sae is not None:
            self.sae = open_sae(runtime.sae, sae_rows)
            self.sae.config.check_width(self.shape.d_model, runtime.subject)
        self.tokenizer = load_tokenizer(runtime)
        template = self.tokenizer.get_chat_template()
        self.template = template_settings(runtime, template)
        self._answers = Answers(self.tokenizer, template)
        self.ends = read_ends(runtime, self.tokenizer)
        end = turn_end(self.tokenizer, self.template, self.ends)
        if end is not None:
            self.ends.append(end)
        if runtime.adapter is not None:
            check_adapter(runtime, empty_model(runtime))
        pad = self.tokenizer.pad_token_id
        self.pad = self.ends[0] if pad is None else int(pad)

    def encode_chat(self, messages: Sequence[dict[str, str]], prefill: str | None) -> list[int]:
        """Token ids of a chat, ending where the model's answer begins or, prefilled, goes on."""
        text = render(self.tokenizer, messages, self.template, self.runtime.subject)
        if prefill is not None:  # it begins the answer, not the thoughts before it
            text += self._answers.to_answer(text) + prefill
        # The template writes the begin-of-text token itself where the model has one.
        encoded = self.tokenizer(text, add_special_tokens=False)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def response(self, row: Row, tokens: Sequence[int]) -> Response:
        """What a model thought and what it answered; a prefilled answer goes on as it was."""
        return self._answers.split(row.prompt, tokens, row.prefilled)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rows_that_fit(self, tokens: int) -> int | None:
        """How many rows of so many tokens fit beside the weights; None where nobody knows."""
        return None

    def passage(
        self, messages: Sequence[dict[str, str]], answer: str, steering: Steering
    ) -> Passage:
        """A chat with its whole answer, tokenised as it was when the answer was generated."""
        encoded = self.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        return Passage(
            prompt=tuple(self.encode_chat(messages, "")),
            answer=tuple(encoded["input_ids"]),
            offsets=np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2),
            steering=steering,
        )

    def check(self, row: Row | Passage) -> None:
        """Find what is wrong with one request before it joins a batch.

        Raises:
            EsrError: It is too long, or names a layer, latent or vector that is not there.
        """
        subject, longest = self.runtime.subject, self.shape.context
        made = row.sampling.max_tokens if isinstance(row, Row) else len(row.answer)
        if longest is not None and len(row.prompt) + made > longest:
            way_out = "; lower --max-tokens." if isinstance(row, Row) else "."
            raise EsrError(
                f"A prompt of {len(row.prompt)} tokens and an answer of {made} "
                f"exceed the {longest} that {subject} can hold{way_out}"
            )
        if row.steering is None:
            return
        fed = len(row.prompt) + made - isinstance(row, Row)  # the last token made is not fed back
        for part in (*row.steering.edits, *row.steering.readouts):
            check_layer(part.layer, self.shape.n_layers, subject)
            if isinstance(part, Readout):
                if not part.of_sae:
                    continue
            else:
                self._check_span(part, len(row.prompt), fed, row.steering.runtime.skip_first)
            if isinstance(part, AddVector):
                width = load_vector(part).shape[-1]
                if width != self.shape.d_model:
                    raise EsrError(
                        f"The vector has {width} values, but the residual stream of "
                        f"{subject} has width {self.shape.d_model}."
                    )
            elif self.sae is not None:
                wanted = part.latents if isinstance(part, Readout) else (part.latent,)
                if wanted == "all":
                    if isinstance(row, Row):
                        raise EsrError(
                            "A readout of the whole SAE while generating would fill the log: "
                            "name its latents, or read over the finished answer."
                        )
                    self.sae.check_whole()
                    continue
                # Read now, so that what is wrong with a row fails this request, not the batch.
                self.sae.check_rows(
                    [int(latent) for latent in wanted],
                    steered=not isinstance(part, Readout),
                    read=not isinstance(part, Boost),
                )

    def _check_span(self, edit: Edit, prompt: int, fed: int, skip_first: int) -> None:
        first, stop = edit.bounds(prompt, 0)
        if skip_first >= prompt and first < skip_first:
            why = f"-M skip_first={skip_first} leaves out the whole prompt ({prompt} tokens)"
        elif first >= (fed if stop is None else min(fed, stop)):
            why = f"it begins at position {first} and at most {fed} are reached"
        else:
            return
        what = "clamp" if isinstance(edit, Clamp) else "boost"
        raise EsrError(f"The {what} at layer {edit.layer} does not act as asked: {why}.")

    def check_answers(self, passages: Sequence[Passage], layer: int) -> None:
        """Raise an `EsrError` when a layer cannot be averaged over these answers."""
        check_layer(layer, self.shape.n_layers, self.runtime.subject)
        if not all(passage.answer for passage in passages):
            raise EsrError("An empty text has no activations.")

    @property
    def has_single_latents(self) -> bool:
        """Whether each latent's activation can be computed from its own rows."""
        return self.sae is None or self.sae.config.architecture in ELEMENTWISE

    @property
    def probed_layer(self) -> int:
        """Where self-checks edit."""
        layer = self.runtime.steering_layer
        return self.shape.n_layers // 2 if layer is None else layer

    def probe_rows(self) -> list[Row]:
        """What a self-check generates: a greeting answered as it is, and with an edit."""
        prompt = tuple(self.encode_chat([{"role": "user", "content": "Hello"}], None))
        sampling = Sampling(0, 0.0, None, None, 1.0, PROBE_TOKENS)
        width = self.shape.d_model
        # Alternating, as an equal shift of all components is what a layer norm takes out.
        vector = tuple((-1.0) ** i / width**0.5 for i in range(width))
        edit = AddVector(vector=vector, strength=PROBE_STRENGTH, layer=self.probed_layer)
        runtime = self.runtime.model_copy(update={"skip_first": 0})
        return [
            Row(prompt, sampling),
            Row(prompt, sampling, Steering(runtime=runtime, edits=(edit,))),
        ]

    def check_probe(self, moved: float, arrived: int, due: int, where: str = "") -> str:
        """What a self-check has found, in words for the log.

        Args:
            moved: By how much the probe's edit moved a logit.
            arrived: Positions at which the edit was seen to arrive.
            due: Positions at which it was made.
            where: Of which server the sentence speaks.

        Raises:
            EsrError: It did not move any, or did not arrive at every position.
        """
        if not moved > 0 or arrived != due:
            raise EsrError(
                f"An edit at layer {self.probed_layer} of {self.runtime.subject} does not reach "
                f"its logits{where}: steering would be silently lost. Please report the model and "
                "the versions of the packages that run it."
            )
        return (
            f"an edit at layer {self.probed_layer} moved the logits by up to {moved:.2f} and "
            f"arrived at {arrived} of {due} positions{where}"
        )


class Backend(Chat, ABC):
    """An engine that generates and reads for batches of rows with different edits."""

    info: BackendInfo
    watch: Callable[[Sequence[Row], list[list[int]]], None] | None = None
    """Told of a batch's rows and of their tokens so far after every step, from a worker thread, by
    a backend that has the model in its own process; whoever sets it takes it away again."""

    @abstractmethod
    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows at once."""

    @abstractmethod
    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """Read activations over finished conversations, all at once."""

    @abstractmethod
    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The residual stream over answers, unedited.

        Args:
            passages: Conversations; only their answers are averaged over, so neither the template
                nor the attention sinks at the beginning count.
            layer: Decoder layer whose output is read.

        Returns:
            Mean residual of every answer (passages, d_model), and the mean norm of its residuals
            (passages,).

        Raises:
            EsrError: The model has no such layer, or an answer no tokens.
        """
