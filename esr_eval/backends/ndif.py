"""The NDIF backend: whole batches, steered on a server that has the model, in one request each.

Neither weights nor an SAE are needed here. What travels is the batch's prompts and settings, the
rows of the SAE that its edits and readouts name, and the code that applies them: the very code
that the local backend runs.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esr_eval.backends.base import BackendInfo, Generated, Passage, Reading, Row
from esr_eval.backends.chat import Chat
from esr_eval.backends.decoding import Decoding
from esr_eval.backends.kernel import MeanParts, Read, Work, reduced
from esr_eval.backends.ndif_client import Client, Job, Report
from esr_eval.backends.ndif_preflight import preflight
from esr_eval.backends.ndif_trace import RemoteModel
from esr_eval.backends.plan import BatchPlan, ReadPlan, expected_positions, padded, plan_batch
from esr_eval.edits import LatentEncoder
from esr_eval.errors import EsrError
from esr_eval.remote import RemoteArgs
from esr_eval.sae import ELEMENTWISE
from esr_eval.spec import Clamp, Runtime
from esr_eval.subjects import embedded_path

CPU = torch.device("cpu")
SELF_CHECK_SHARE = 0.5
"""Part of the residual's norm that the self-check adds: enough to move any model's logits."""
RESULT_BYTES = 32 << 20
"""Residuals brought back in one request: 250 answers of 120 tokens at d_model 576 in float32,
five of 400 tokens at d_model 8,192 in bfloat16."""

Readings = Mapping[tuple[int, int], tuple[Tensor | None, int]]


class NDIFBackend(Chat):
    """A model on NDIF, or on a server of its kind.

    A readout of the whole SAE (over finished answers), or of an SAE whose latents depend on each
    other, is not computed there: the residual stream of the positions it reads is brought back in
    the model's own precision (16 KB a token at d_model 8,192 in bfloat16, so 6.4 MB for an answer
    of 400 tokens), and the SAE is loaded and encodes it here.
    """

    def __init__(self, runtime: Runtime, remote: RemoteArgs, report: Report | None = None) -> None:
        """Connect, and check host, key, versions and deployment before anything is asked.

        Args:
            runtime: What the server must run.
            remote: Where it is, the key, and how long to be patient.
            report: Told about queue, state and server seconds.

        Raises:
            EsrError: Something does not fit; the sentence says what, and the way out.
        """
        super().__init__(runtime, remote.sae_rows)
        self._client = Client(remote, report)
        _check_adapter(runtime, self._client)
        self._model = RemoteModel(self)
        there = preflight(
            self._client, self._model.key, self._model.repository, report or (lambda c, t: None)
        )
        self.info = BackendInfo(
            device=f"NDIF {self._client.url}",
            versions={
                **{p: version(p) for p in ("nnsight", "sae-lens", "torch", "transformers")},
                **{f"server {package}": number for package, number in there.items()},
            },
            self_check=self._self_check(),
            sae_digest=self.sae.digest if self.sae else None,
        )

    def check(self, row: Row | Passage) -> None:
        """Find what is wrong with one request before it joins a batch.

        Raises:
            EsrError: It cannot be carried out on a server that does not have the SAE.
        """
        super().check(row)
        if row.steering is None or self._has_single_latents:
            return
        clamps = any(isinstance(edit, Clamp) for edit in row.steering.edits)
        if clamps or (row.steering.readouts and isinstance(row, Row)):
            raise EsrError(
                "In this SAE a latent's activation depends on all the others, so clamps and "
                "readouts while generating need the whole SAE beside the model: use "
                "-M backend=local or vllm for them."
            )

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Generate for all rows in one request; may be called from several threads at once.

        Raises:
            EsrError: The server refuses, or stays away for longer than `wait`.
            MemoryError: The server ran out of memory.
            RuntimeError: The server's loop did not follow the chosen tokens.
        """
        ids, mask = padded([row.prompt for row in rows], self.pad, CPU)
        plan = plan_batch(rows, self.sae, lambda layer: CPU)
        decoding = Decoding(rows, ids, mask, self.ends)
        found = self._run(self._model.generate(ids, mask, decoding, plan.work(len(rows))))
        results = []
        for b, row in enumerate(rows):
            made, by_model = int(found["generated"][b]), bool(found["ended"][b])
            tokens = found["tokens"][b, :made].tolist()
            if found["looped"][b, ids.shape[1] :][:made].tolist() != tokens:
                raise RuntimeError(
                    "The model on NDIF went on from other tokens than were chosen: its own "
                    "generation settings interfere. Please report the model."
                )
            # The last token is fed back only when the model went on to choose an end token.
            fed = len(row.prompt) + made - (0 if by_model else 1)
            results.append(
                Generated(
                    tokens=tokens,
                    stop_reason="stop" if by_model else "max_tokens",
                    edited_positions=int(found["receipts"][b]),
                    expected_positions=expected_positions(row, fed),
                    readouts=plan.readouts(b, found["readings"]),
                )
            )
        return results

    def read(self, passages: Sequence[Passage]) -> list[Reading]:
        """Read over finished conversations; as many in one request as its result may hold.

        Raises:
            EsrError: The server refuses, or stays away for longer than `wait`.
        """
        readings: list[Reading] = []
        for part in _parts(passages, self._residual_bytes):
            readings += self._read(part)
        return readings

    def mean_residuals(
        self, passages: Sequence[Passage], layer: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `BackendProtocol.mean_residuals`; averaged on the server."""
        self.check_answers(passages, layer)
        reads = [
            Read((b, 0), len(p.prompt), len(p.prompt) + len(p.answer), "mean", MeanParts())
            for b, p in enumerate(passages)
        ]
        found = self._pass_over(passages, Work(len(passages), {}, {layer: reads}))
        means = np.stack([_present(found["readings"][b, 0]).numpy() for b in range(len(passages))])
        return means[:, :-1], means[:, -1]

    def _read(self, passages: Sequence[Passage]) -> list[Reading]:
        plan = plan_batch(passages, self.sae, lambda layer: CPU)
        plans = {(r.row, r.index): r for reads in plan.reads.values() for r in reads}
        found = self._pass_over(passages, _without_sae(plan, len(passages)))
        return [
            Reading(
                values=[
                    self._values(plans[b, index], found["readings"])
                    for index in range(len(passage.steering.readouts))
                ],
                prompt_tokens=len(passage.prompt),
                answer_tokens=len(passage.answer),
                offsets=passage.offsets,
                edited_positions=int(found["receipts"][b]),
                expected_positions=expected_positions(
                    passage, len(passage.prompt) + len(passage.answer)
                ),
            )
            for b, passage in enumerate(passages)
        ]

    def _values(self, plan: ReadPlan, readings: Readings) -> NDArray[np.float32]:
        value, _ = readings[plan.row, plan.index]
        if value is not None and isinstance(plan.encode, LatentEncoder):
            return np.asarray(value.float().numpy())
        residuals = torch.zeros(0, self.shape.d_model) if value is None else value.float()
        if value is None and isinstance(plan.encode, LatentEncoder):
            activations = torch.zeros(0, len(plan.readout.latents))
        else:
            with torch.inference_mode():
                activations = plan.encode(residuals).float()
        if len(activations) or plan.readout.reduce == "tokens":
            return np.asarray(reduced(activations, plan.readout.reduce).numpy())
        return np.zeros(activations.shape[-1], dtype=np.float32)

    def _pass_over(self, passages: Sequence[Passage], work: Work) -> dict[str, Any]:
        whole = [(*passage.prompt, *passage.answer) for passage in passages]
        # Padded on the right: without generation's bookkeeping positions count from the left.
        ids, mask = padded(whole, self.pad, CPU, left=False)
        at = torch.arange(ids.shape[1]).masked_fill(~mask.bool(), -1)
        return self._run(self._model.read(ids, mask, at, work))

    def _residual_bytes(self, passage: Passage) -> int:
        size = torch.finfo(getattr(torch, self.runtime.dtype)).bits // 8
        positions = 0
        for readout in passage.steering.readouts:
            if readout.latents == "all" or not self._has_single_latents:
                skip = passage.steering.runtime.skip_first
                start, stop = readout.bounds(len(passage.prompt), skip)
                end = len(passage.prompt) + len(passage.answer)
                positions += max(0, min(end, stop or end) - start)
        return positions * self.shape.d_model * size

    @property
    def _has_single_latents(self) -> bool:
        """Whether each latent's activation can be computed from its own rows."""
        return self.sae is None or self.sae.config.architecture in ELEMENTWISE

    def _run(self, payload: bytes) -> dict[str, Any]:
        found = self._client.run(Job(self._model.key, self._model.env, payload))
        return dict(found["out"])

    def _self_check(self) -> str:
        """Prove that an edit made there reaches the next token's logits.

        Raises:
            EsrError: It does not, or the server holds the model in another precision.
        """
        layer = self.runtime.steering_layer
        if layer is None:
            layer = self.shape.n_layers // 2
        prompt = self.encode_chat([{"role": "user", "content": "Hello"}], None)
        found = self._run(self._model.probe(torch.tensor([prompt] * 2), layer, SELF_CHECK_SHARE))
        dtype, moved = str(found["dtype"]).removeprefix("torch."), float(found["moved"])
        if dtype != self.runtime.dtype:
            raise EsrError(
                f"NDIF holds {self.runtime.model} in {dtype}, not {self.runtime.dtype}: "
                f"pass -M dtype={dtype}."
            )
        if not moved > 0:
            raise EsrError(
                f"An edit at layer {layer} of {self.runtime.subject} does not reach its logits on "
                "NDIF: steering would be silently lost. Please report the model and the versions "
                f"there ({self._client.url}/env)."
            )
        return f"an edit at layer {layer} moved the logits by up to {moved:.2f}"


def _without_sae(plan: BatchPlan, rows: int) -> Work:
    """The plan's work, bringing residuals back where an encoder is too large to travel."""
    work = plan.work(rows)
    for reads in work.reads.values():
        for read in reads:
            if not isinstance(read.encode, LatentEncoder):
                read.encode = None
    return work


def _parts(
    passages: Sequence[Passage], size_of: Any, most: int = RESULT_BYTES
) -> list[list[Passage]]:
    parts: list[list[Passage]] = []
    room = 0
    for passage in passages:
        size = size_of(passage)
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1].append(passage)
        room -= size
    return parts


def _present(reading: tuple[Tensor | None, int]) -> Tensor:
    value, _ = reading
    assert value is not None
    return value


def _check_adapter(runtime: Runtime, client: Client) -> None:
    """An adapter on this machine can only be read by a server on this machine."""
    if runtime.adapter is None or client.loopback:
        return
    if runtime.adapter.startswith("embedded:") or embedded_path(runtime.adapter).exists():
        raise EsrError(
            f"The adapter {runtime.adapter} lies on this machine, where NDIF cannot read it: put "
            "it on the Hugging Face hub and pass its id as -M adapter=, or use -M backend=vllm."
        )
