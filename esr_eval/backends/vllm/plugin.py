"""What vLLM loads as a plugin in each of its processes: steering and sampling in its model runners.

Everything that knows a runner's inside is here. vLLM has two of them, "V1" and "V2"; both are
wrapped alike, and preflight proves on the server that runs that edits arrive and are counted.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esr_eval.backends.vllm import LAYERS_ENV, OURS, code_digest
from esr_eval.backends.vllm.sampler import BatchSampler
from esr_eval.backends.vllm.steerer import Steerer
from esr_eval.backends.vllm.wire import read_rows

_LIBRARY = torch.library.Library("esr_eval", "FRAGMENT")  # type: ignore[no-untyped-call]
_STEERER: list[Steerer] = []
"""This process's, once its model is loaded."""


def _edit(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    _STEERER[0].edit(layer, hidden, residual)


def _confirm(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    _STEERER[0].confirm(layer, hidden, residual)


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
        direct_register_custom_op(name, run, ["hidden"], lambda *_: None, target_lib=_LIBRARY)
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

    def is_here(number: int) -> bool:
        """Whether there is such a layer, and not on another stage of the pipeline."""
        return number < len(stack) and type(stack[number]).__name__ != "PPMissingLayer"

    like = torch.empty(
        config.model_config.get_hidden_size(), dtype=config.model_config.dtype, device=runner.device
    )
    here, longest = [*filter(is_here, layers)], config.model_config.max_model_len
    positions = getattr(runner, "input_buffers", runner).positions  # V2 keeps them apart
    _STEERER[:] = [Steerer(here, like, positions, longest, fixed=like.is_cuda)]
    vocabulary = config.model_config.get_vocab_size()
    runner.esr_sampler = BatchSampler(runner.device, vocabulary, like.dtype)
    for number in here:
        edit, confirm = (
            functools.partial(_passes, run, number)
            for run in (torch.ops.esr_eval.edit, torch.ops.esr_eval.confirm)
        )
        stack[number].register_forward_hook(edit, with_kwargs=True)
        if is_here(number + 1):
            stack[number + 1].register_forward_pre_hook(confirm, with_kwargs=True)
        else:  # nobody else here
            stack[number].register_forward_hook(confirm, with_kwargs=True)
    compute = model.compute_logits
    model.compute_logits = lambda *a, **k: runner.esr_sampler.chosen(compute(*a, **k))
    return done


def _passes(
    run: Callable[..., None],
    number: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any = None,
) -> None:
    """Show one of our operations the residual stream that a layer returns, or gets.

    It is one tensor, or two to be added.
    """
    passed = (*args, *kwargs.values()) if out is None else out
    passed = passed if isinstance(passed, tuple) else (passed,)
    found = [x for x in passed if isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()]
    run(found[0], found[1] if len(found) > 1 else None, number)


def _executes(
    original: Callable[..., Any], runner: Any, scheduled: Any, *args: Any, **kwargs: Any
) -> Any:
    if kwargs.get("dummy_run"):
        return original(scheduled, *args, **kwargs)
    steerer = _STEERER[0]
    steerer.leave(scheduled.finished_req_ids)
    for new in scheduled.scheduled_new_reqs:
        told = ((new.sampling_params and new.sampling_params.extra_args) or {}).get(OURS)
        if isinstance(told, dict):  # as `routes` has checked it
            steerer.admit(new.req_id, told, new.prompt_token_ids)
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
    starts = runner.input_batch.num_computed_tokens_cpu[: len(names)]
    requests = _STEERER[0].step(names, starts, counts)
    runner.esr_sampler.step(requests, ~runner.discard_request_mask.np[: len(names)])
    return done


def _prepares_v2(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = original(*args, **kwargs)
    starts, counts = batch.num_computed_tokens_np, batch.num_scheduled_tokens
    requests = _STEERER[0].step(batch.req_ids, starts, counts)
    runner.esr_sampler.step(requests, starts + counts >= batch.prefill_len_np)
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
    _STEERER[0].put(at, read_rows(rows).values())


def esr_fetch(worker: Any, wanted: list[tuple[str, int]]) -> list[dict[str, Any] | None]:
    """What became of requests: see `Steerer.fetch`."""
    return [_STEERER[0].fetch(ours, fed) for ours, fed in wanted]
