"""What vLLM loads as a plugin in each of its processes: steering and sampling in its model runners.

Everything that knows a runner's inside is here. vLLM has two of them, "V1" and "V2"; both are
wrapped alike, and preflight proves on the server that runs that edits arrive and are counted.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esr_eval.backends.vllm import LAYERS_ENV, PLAN_ARG, SAMPLING_ARG, SPARE_SLOTS, code_digest
from esr_eval.backends.vllm.sampler import BatchSampler
from esr_eval.backends.vllm.steerer import Steerer

_LIBRARY = torch.library.Library("esr_eval", "FRAGMENT")  # type: ignore[no-untyped-call]
_STEERER: list[Steerer] = []
"""This process's, once its model is loaded."""


def _edit(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    _STEERER[0].edit(layer, hidden, residual)


def _confirm(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    _STEERER[0].confirm(layer, hidden, residual)


def _fake(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    return None


def register() -> None:
    """Called in every process, maybe more than once; runners are wrapped where there are any."""
    from vllm.config import VllmConfig
    from vllm.v1.worker.worker_base import WorkerBase

    if hasattr(WorkerBase, esr_facts.__name__):
        return
    for method in (esr_facts, esr_put, esr_fetch):
        setattr(WorkerBase, method.__name__, method)
    _wrap(VllmConfig, "compute_hash", _salted)
    _wrap(WorkerBase, "__init__", _works)


def _works(original: Callable[..., None], worker: Any, *args: Any, **kwargs: Any) -> None:
    _wrap_runners()
    original(*args, **kwargs)


@functools.cache
def _wrap_runners() -> None:
    from vllm.utils.torch_utils import direct_register_custom_op
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for name, run in (("edit", _edit), ("confirm", _confirm)):
        # What is declared as changed is neither left out nor moved by the compiler.
        direct_register_custom_op(name, run, ["hidden"], _fake, target_lib=_LIBRARY)
    _wrap(CPUModelRunner, "load_model", _loads)
    _wrap(GPUModelRunner, "load_model", _loads)
    _wrap(GPUModelRunner, "_prepare_inputs", _prepares_v1)
    _wrap(GPUModelRunner, "execute_model", _executes)
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    except ImportError:  # it needs Triton, which the CPU build lacks
        pass
    else:
        _wrap(RunnerV2, "load_model", _loads)
        _wrap(RunnerV2, "prepare_inputs", _prepares_v2)
        _wrap(RunnerV2, "execute_model", _executes)


def _wrap(cls: type, name: str, around: Callable[..., Any]) -> None:
    original = cls.__dict__[name]

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, self), self, *args, **kwargs)

    setattr(cls, name, wrapped)


def _salted(original: Callable[..., str], config: Any, *args: Any, **kwargs: Any) -> str:
    """VLLM keeps compiled graphs, and knows nothing of what a plugin puts into them."""
    parts = (original(*args, **kwargs), code_digest(), os.environ.get(LAYERS_ENV, ""))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _loads(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    config = runner.vllm_config
    sharded = getattr(config.parallel_config, "enable_batch_sharded_sampling", False)
    if sharded or config.speculative_config is not None:
        raise ValueError(
            "esr-eval chooses a token for each request and step from all of its logits: start "
            "vLLM without speculative decoding and batch-sharded sampling."
        )
    done = original(*args, **kwargs)
    model = runner.get_model()
    text = config.model_config.hf_text_config
    layers = [int(layer) for layer in os.environ.get(LAYERS_ENV, "").split(",") if layer]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    stack = next(m for m in stacks if len(m) == text.num_hidden_layers)
    here = [n for n in layers if n < len(stack) and not _is_elsewhere(stack[n])]
    like = torch.empty(
        config.model_config.get_hidden_size(), dtype=config.model_config.dtype, device=runner.device
    )
    steerer = Steerer(
        here,
        like,
        tokens=config.scheduler_config.max_num_batched_tokens,
        slots=config.scheduler_config.max_num_seqs + SPARE_SLOTS,
        longest=config.model_config.max_model_len,
        fixed=like.is_cuda,
    )
    buffers = getattr(runner, "input_buffers", runner)  # V2 keeps them apart
    steerer.positions = buffers.positions
    _STEERER[:] = [steerer]
    runner.esr_sampler = BatchSampler(runner.device)
    runner.esr_sampler.compile(config.model_config.get_vocab_size(), like.dtype)
    for number in here:
        behind = stack[number + 1] if number + 1 < len(stack) else None
        confirmed = behind is not None and not _is_elsewhere(behind)
        _teach(stack[number], esr_edits=number, esr_own=not confirmed)
        if confirmed:
            _teach(behind, esr_confirms=number)
    compute = model.compute_logits
    model.compute_logits = lambda *a, **k: runner.esr_sampler.chosen(compute(*a, **k))
    return done


def _is_elsewhere(layer: nn.Module) -> bool:
    """Whether a layer belongs to another stage of the pipeline."""
    return type(layer).__name__ == "PPMissingLayer"


def _teach(layer: Any, **marks: int) -> None:
    """Have a layer call our operations, before anything is compiled.

    Args:
        layer: The layer.
        marks: Which layer it edits (`esr_edits`) or confirms the edits of (`esr_confirms`), and
            whether nobody else confirms its own (`esr_own`).
    """
    cls: Any = type(layer)
    if not hasattr(cls, "esr_edits"):
        cls.esr_edits, cls.esr_confirms, cls.esr_own = None, None, False
        original = cls.forward

        @functools.wraps(original)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.esr_confirms is not None:
                hidden, residual = _stream((*args, *kwargs.values()))
                torch.ops.esr_eval.confirm(hidden, residual, self.esr_confirms)
            out = original(self, *args, **kwargs)
            if self.esr_edits is not None:
                hidden, residual = _stream(out if isinstance(out, tuple) else (out,))
                torch.ops.esr_eval.edit(hidden, residual, self.esr_edits)
                if self.esr_own:
                    torch.ops.esr_eval.confirm(hidden, residual, self.esr_edits)
            return out

        cls.forward = forward
    for name, value in marks.items():
        setattr(layer, name, value)


def _stream(passed: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
    """The residual stream in what a layer gets or returns: one tensor, or two to be added."""
    found = [x for x in passed if isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()]
    return found[0], found[1] if len(found) > 1 else None


def _executes(
    original: Callable[..., Any], runner: Any, scheduled: Any, *args: Any, **kwargs: Any
) -> Any:
    if kwargs.get("dummy_run"):
        return original(scheduled, *args, **kwargs)
    steerer = _STEERER[0]
    steerer.leave(scheduled.finished_req_ids)
    runner.esr_sampler.leave(scheduled.finished_req_ids)
    for new in scheduled.scheduled_new_reqs:
        extra = (new.sampling_params and new.sampling_params.extra_args) or {}
        if PLAN_ARG in extra:
            steerer.admit(new.req_id, json.loads(extra[PLAN_ARG]))
        if SAMPLING_ARG in extra:
            runner.esr_sampler.admit(new.req_id, extra[SAMPLING_ARG], new.prompt_token_ids)
    done = original(scheduled, *args, **kwargs)
    if scheduled.total_num_scheduled_tokens:
        state = runner.execute_model_state
        steerer.after(None if state is None else state.hidden_states)
    return done


def _prepares_v1(
    original: Callable[..., Any], runner: Any, scheduled: Any, counts: Any, *args: Any
) -> Any:
    done = original(scheduled, counts, *args)
    names = runner.input_batch.req_ids
    _STEERER[0].step(names, runner.input_batch.num_computed_tokens_cpu[: len(names)], counts)
    runner.esr_sampler.step(names, ~runner.discard_request_mask.np[: len(names)])
    return done


def _prepares_v2(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = original(*args, **kwargs)
    _STEERER[0].step(batch.req_ids, batch.num_computed_tokens_np, batch.num_scheduled_tokens)
    reached = batch.num_computed_tokens_np + batch.num_scheduled_tokens
    runner.esr_sampler.step(batch.req_ids, reached >= batch.prefill_len_np)
    return batch


def esr_facts(worker: Any) -> dict[str, Any]:
    """What a worker's model is; called in every worker for `routes`."""
    runner, steerer = worker.model_runner, _STEERER[0]
    config = runner.model_config
    return {
        "layers": sorted(steerer.layers),
        "n_layers": config.hf_text_config.num_hidden_layers,
        "width": steerer.bank.directions.shape[1],
        "dtype": str(config.dtype).removeprefix("torch."),
        "device": steerer.positions.device.type,
        "torch": str(torch.__version__),
        "runner": "V2" if hasattr(runner, "input_buffers") else "V1",
    }


def esr_put(worker: Any, at: list[int], rows: bytes) -> None:
    """Put rows, as safetensors, into places of the bank."""
    from esr_eval.backends.vllm.routes import unpacked

    _STEERER[0].put(at, list(unpacked(rows).values()))


def esr_fetch(worker: Any, wanted: list[tuple[str, int]]) -> list[dict[str, Any] | None]:
    """What became of requests: see `Steerer.fetch`."""
    return [_STEERER[0].fetch(ours, fed) for ours, fed in wanted]
