"""The NDIF backend: whole batches, steered on a server that has the model, in one request each.

Neither weights nor an SAE are needed here. What travels is the batch's prompts and settings, the
rows of the SAE that its edits and readouts name, and the code that applies them: the very code
that the local backend runs.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed
from transformers import GenerationConfig

from esr_eval.backends.base import Backend, BackendInfo
from esr_eval.backends.ndif.client import (
    CAPTION,
    FORUM,
    LOGIN,
    STATUS,
    Client,
    Job,
    PassingError,
    Report,
    detail,
    refused,
    said,
)
from esr_eval.backends.ndif.trace import RemoteModel
from esr_eval.backends.remote import RemoteArgs, interruptible_sleep
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.sae.encoder import SMALL
from esr_eval.spec import Clamp, Runtime
from esr_eval.steering.decoding import Decoding, meddling
from esr_eval.steering.kernel import Intervention, Read, reduced
from esr_eval.steering.plan import padded, padded_passages, plan_batch, plan_means
from esr_eval.steering.requests import (
    Generated,
    Passage,
    Reading,
    Row,
    counts_of,
    generated,
    generated_readouts,
    means,
    read_results,
)
from esr_eval.subjects import embedded_path

CPU = torch.device("cpu")
RESULT_BYTES = 32 << 20
"""Residuals brought back in one request: 250 answers of 120 tokens at d_model 576 in float32,
five of 400 tokens at d_model 8,192 in bfloat16."""
PACKAGES = ("nnsight", "transformers", "torch")
AGREEING = {"nnsight": 2, "transformers": 1, "torch": 1}
"""How many parts of each version must agree: nnsight's requests change between 0.7 and 0.8."""
TRIES, PAUSE = 4, 2.0
ANSWERED = 422
"""FastAPI's status for a form that lacks a field: everything before that was in order."""


class NDIFBackend(Backend):
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
        check_settings(runtime)
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
                "attention": str(self._model.env["attn_implementation"]),
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
        if row.steering is None or self.has_single_latents:
            return
        clamps = any(isinstance(edit, Clamp) for edit in row.steering.edits)
        reads = any(readout.of_sae for readout in row.steering.readouts)
        if clamps or (reads and isinstance(row, Row)):
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
        return self._generate(rows)[0]

    def _generate(
        self, rows: Sequence[Row], compare: bool = False
    ) -> tuple[list[Generated], dict[str, Any]]:
        """Generate; also the server's whole answer."""
        ids, mask = padded([row.prompt for row in rows], self.pad, CPU)
        plan = plan_batch(rows, self.sae, lambda layer: CPU)
        decoding = Decoding(rows, ids, mask, self.ends, compare)
        found = self._run(self._model.generate(ids, mask, decoding, plan))
        results = []
        for b, row in enumerate(rows):
            tokens = found["tokens"][b, : int(found["generated"][b])].tolist()
            if found["looped"][b, ids.shape[1] :][: len(tokens)].tolist() != tokens:
                raise RuntimeError(
                    "The model on NDIF went on from other tokens than were chosen: its own "
                    "generation settings interfere. Please report the model."
                )
            results.append(
                generated(
                    row,
                    tokens,
                    bool(found["ended"][b]),
                    counts_of(b, found["receipts"]),
                    generated_readouts(row, b, found["readings"]),
                    bool(found["finite"][b]),
                )
            )
        return results, found

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
        """See `Backend.mean_residuals`; averaged on the server."""
        self.check_answers(passages, layer)
        return means(self._pass_over(passages, plan_means(passages, layer))["readings"])

    def _read(self, passages: Sequence[Passage]) -> list[Reading]:
        plan = plan_batch(passages, self.sae, lambda layer: CPU)
        found = self._pass_over(passages, _without_sae(plan, len(passages)))
        readings = dict(found["readings"])
        for read in (read for reads in plan.reads.values() for read in reads):
            residuals, count = readings[read.key]
            if residuals is not None and not isinstance(read.encode, SMALL):
                with torch.inference_mode():
                    activations = read.encode(residuals.float()).float()
                readings[read.key] = reduced(activations, read.how), count
        return read_results(passages, readings, found["receipts"], self.sae)

    def _pass_over(self, passages: Sequence[Passage], plan: Intervention) -> dict[str, Any]:
        return self._run(self._model.read(*padded_passages(passages, self.pad, CPU), plan))

    def _residual_bytes(self, passage: Passage) -> int:
        size = torch.finfo(getattr(torch, self.runtime.dtype)).bits // 8
        positions = 0
        for readout in passage.steering.readouts:
            if readout.of_sae and (readout.latents == "all" or not self.has_single_latents):
                skip = passage.steering.runtime.skip_first
                start, stop = readout.bounds(len(passage.prompt), skip)
                end = len(passage.prompt) + len(passage.answer)
                positions += max(0, min(end, stop or end) - start)
        return positions * self.shape.d_model * size

    def _run(self, payload: bytes) -> dict[str, Any]:
        found = self._client.run(Job(self._model.key, self._model.env, payload))
        return dict(found["out"])

    def _self_check(self) -> str:
        """Prove that an edit made there reaches the next token's logits.

        Raises:
            EsrError: It does not, or the server holds the model in another precision.
        """
        (_, edited), found = self._generate(self.probe_rows(), compare=True)
        dtype = str(found["dtype"]).removeprefix("torch.")
        if dtype != self.runtime.dtype:
            raise EsrError(
                f"NDIF holds {self.runtime.model} in {dtype}, not {self.runtime.dtype}: "
                f"pass -M dtype={dtype}."
            )
        where = f" on NDIF ({self._client.url})"
        arrived, due = edited.edited_positions, edited.expected_positions
        return self.check_probe(float(found["apart"]), arrived, due, where)


def _without_sae(plan: Intervention, rows: int) -> Intervention:
    """The same for one pass, bringing residuals back where an encoder is too large to travel."""

    def sent(read: Read) -> Read:
        encode = read.encode if isinstance(read.encode, SMALL) else None
        return Read(read.key, read.start, read.stop, read.how, encode)

    reads = {layer: [sent(read) for read in reads] for layer, reads in plan.reads.items()}
    return Intervention(rows, plan.edits, reads, once=True)


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


def _check_adapter(runtime: Runtime, client: Client) -> None:
    """An adapter on this machine can only be read by a server on this machine."""
    if runtime.adapter is None or client.loopback:
        return
    if runtime.adapter.startswith("embedded:") or embedded_path(runtime.adapter).exists():
        raise EsrError(
            f"The adapter {runtime.adapter} lies on this machine, where NDIF cannot read it: put "
            "it on the Hugging Face hub and pass its id as -M adapter=, or use -M backend=vllm."
        )


def preflight(client: Client, key: str, repository: str, report: Report) -> dict[str, str]:
    """Check host, key, versions and the model's deployment.

    Args:
        client: The server.
        key: nnsight's name of the model.
        repository: Its Hugging Face id or folder.
        report: Told what is being checked.

    Returns:
        Versions on the server, by package.

    Raises:
        EsrError: Something is in the way; the sentence says what, and the way out.
    """
    report(CAPTION, f"checking {client.url}")
    _check_reachable(client)
    _check_key(client, key)
    versions = _check_versions(client)
    _check_deployed(client, key, repository)
    return versions


def reach(remote: RemoteArgs) -> str:
    """Whether a server is there, takes a key, and fits the versions here; nothing is run on it.

    Raises:
        EsrError: It does not.
    """
    client = Client(remote)
    _check_reachable(client)
    _check_has_key(client)
    there = _check_versions(client)
    return f"NDIF at {client.url}: {', '.join(f'{name} {one}' for name, one in there.items())}"


def check_settings(runtime: Runtime) -> None:
    """Refuse a model whose own generation settings would have a say on the server.

    There they stay with the model, and a request cannot replace them; here it does.

    Raises:
        EsrError: It has such settings.
    """
    source, extra = model_source(runtime)
    try:
        settings = GenerationConfig.from_pretrained(source, **extra)
    except OSError:  # a model need not have such a file
        return
    if own := meddling(settings):
        told = ", ".join(f"{name}={value!r:.40}" for name, value in sorted(own.items()))
        raise EsrError(
            f"{runtime.model} generates with settings of its own ({told}), which NDIF's server "
            "applies whatever a request says: use -M backend=local or vllm."
        )


def _check_reachable(client: Client) -> None:
    here = " (esr-eval serve ndif start)" if client.loopback else f"; {STATUS} shows its state"
    gone = (
        "cannot be reached ({why}). Check --model-base-url (or NDIF_HOST) and the network, and "
        f"that it runs{here}."
    )

    def ask() -> httpx.Response:
        response = client.get("/connected")
        if response.status_code == 503:
            raise EsrError(f"NDIF at {client.url} has no models at the moment: {detail(response)}")
        return response

    _answer(client, ask, gone=gone)


def _check_has_key(client: Client) -> None:
    if not client.has_key and not client.loopback:
        raise EsrError(
            f"NDIF at {client.url} asks for an API key: get one at {LOGIN} and set NDIF_API_KEY."
        )


def _check_key(client: Client, key: str) -> None:
    _check_has_key(client)
    # Without its payload the form is incomplete, which the server says after the key.
    _answer(client, lambda: client.post({"model_key": key}, payload=None), good=ANSWERED)


def _check_versions(client: Client) -> dict[str, str]:
    env = _answer(client, lambda: client.get("/env")).json()
    there: dict[str, str] = {p: str(env["packages"].get(p, "")) for p in PACKAGES}
    for package, parts in AGREEING.items():
        here = version(package)
        first, other = (v.partition("+")[0].split(".")[:parts] for v in (here, there[package]))
        if first != other:
            raise EsrError(
                f"NDIF at {client.url} has {package} {there[package] or '(none)'}, this machine "
                f"{here}: they do not fit together; pip install {package}=={there[package]}."
            )
    python = str(env.get("python_version", "")).split(" ")[0]
    return {"python": python, **{p: v.partition("+")[0] for p, v in there.items()}}


def _check_deployed(client: Client, key: str, repository: str) -> None:
    status = _answer(client, lambda: client.get("/status")).json()
    deployments: dict[str, dict[str, Any]] = status.get("deployments", {})
    states = [
        str(one.get("application_state", "RUNNING"))
        for name, one in deployments.items()
        if one.get("model_key") == key or name.endswith(f":{key}")
    ]
    if "RUNNING" in states or "DEPLOYING" in states:
        return
    others = [
        f"{one.get('repo_id')} (revision {one.get('revision')}, task {one.get('task')})"
        for one in deployments.values()
        if one.get("repo_id") == repository and one.get("deployment_level") in {"HOT", "WARM"}
    ]
    if others:
        raise EsrError(
            f"NDIF at {client.url} has {', '.join(others)} deployed, which is not what was asked "
            f"for ({key.partition(':')[2]}): choose it with -M revision=."
        )
    way_out = (
        "start the server with it (esr-eval serve ndif start)"
        if client.loopback
        else f"{STATUS} shows what is; ask for it at {FORUM}, or in your NDIF account if that may "
        "deploy models"
    )
    state = f" ({', '.join(sorted(set(states)))})" if states else ""
    raise EsrError(f"{repository} is not deployed on NDIF at {client.url}{state}: {way_out}.")


def _answer(
    client: Client,
    ask: Callable[[], httpx.Response],
    good: int = 200,
    gone: str = "broke the connection: {why}",
) -> httpx.Response:
    """Ask a few times: a server that is just coming up is none that is down."""

    def once() -> httpx.Response:
        try:
            response = ask()
        except httpx.HTTPError as error:
            raise EsrError(f"NDIF at {client.url} {gone.format(why=said(error))}") from error
        if response.status_code != good:
            raise refused(response, client.url)
        return response

    again = Retrying(
        retry=retry_if_exception_type((PassingError, EsrError)),
        stop=stop_after_attempt(TRIES),
        wait=wait_fixed(PAUSE),
        sleep=interruptible_sleep,
        reraise=True,
    )
    try:
        return again(once)
    except PassingError as error:
        raise EsrError(f"NDIF does not work at the moment: {error.reason}") from error
