"""Adapters of several mixes, each trained, calibrated and evaluated on the same trials."""

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from esr_eval._util.terminal import note
from esr_eval.errors import EsrError
from esr_eval.finetune.card import read_facts
from esr_eval.finetune.data import read_examples
from esr_eval.finetune.train import SET_FILE, STATE_FILE, planned_steps, train
from esr_eval.logs.reading import Note
from esr_eval.paper.run import Paper, finished, run_step
from esr_eval.paper.steps import Step
from esr_eval.paper.sweep_plan import Adapter, Sweep
from esr_eval.paper.sweep_steps import adapter_steps, base_steps
from esr_eval.provider.arguments import ModelArgs

EXAMPLES_PER_SECOND = {"smollm2-135m": 1.1}
"""Examples trained on per second where it was measured: the embedded preset on 2 CPU cores."""


def training_lines(sweep: Sweep) -> list[str]:
    """What each training takes, as a line."""
    lines = []
    for adapter in sweep.adapters:
        corrections = sum(one.kind == "correction" for one in adapter.examples)
        steps = planned_steps(adapter.examples, adapter.preset, sweep.sizes.max_steps)
        seen = steps * adapter.preset.micro_batch * adapter.preset.grad_accumulation
        speed = EXAMPLES_PER_SECOND.get(sweep.subject.name)
        took = f", about {seen / speed / 60:.0f} minutes" if speed else ""
        lines.append(
            f"{adapter.name}: {len(adapter.examples)} examples, {corrections} of them "
            f"self-correction, {'trained already' if adapter.trained else f'{steps} steps{took}'}"
        )
    return lines


def done_steps(
    sweep: Sweep, note: Note = lambda text: None, *, aside: bool = False
) -> dict[str, str]:
    """Logs of the steps that have ended; see `esr_eval.paper.run.finished`.

    Raises:
        EsrError: The folder holds another sweep.
    """
    for adapter in sweep.adapters:
        _check_trained(adapter)
    return finished(sweep.logs, sweep.about, note, aside=aside)


def run(sweep: Sweep, tell: Callable[[str], None]) -> Path:
    """Train and evaluate whatever has not ended; what was interrupted goes on.

    Args:
        sweep: From `plan`.
        tell: Told of every step.

    Returns:
        The folder of logs.

    Raises:
        EsrError: A step did not end well; the same command goes on from there.
    """
    logs = done_steps(sweep, note, aside=True)
    _evaluate(sweep, sweep.paper(), base_steps(sweep), logs, tell)
    for adapter in sweep.adapters:
        if not adapter.trained:
            tell(f"{adapter.name} train")
            _train(sweep, adapter)
        _evaluate(sweep, sweep.paper(adapter), adapter_steps(sweep, adapter), logs, tell)
    return sweep.logs


def _evaluate(
    sweep: Sweep,
    paper: Paper,
    steps: Sequence[Step],
    logs: dict[str, str],
    tell: Callable[[str], None],
) -> None:
    for step in steps:
        if step.key not in logs:
            tell(step.key)
            logs[step.key] = run_step(paper, step, logs, sweep.about)


def _train(sweep: Sweep, adapter: Adapter) -> None:
    device = sweep.model_args.get("device")
    checkpoints = adapter.folder / "checkpoints"
    train(
        adapter.examples,
        ModelArgs.parse(sweep.model_args).runtime(sweep.subject),
        adapter.preset,
        adapter.folder,
        device=None if device is None else str(device),
        resume=any(checkpoints.glob(f"checkpoint-*/{STATE_FILE}")),
        max_steps=sweep.sizes.max_steps,
    )
    # The trained model must be gone before the evaluation loads its own.
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_trained(adapter: Adapter) -> None:
    """Raise an `EsrError` where the folder holds an adapter of another training."""
    if not adapter.trained:
        return
    facts = read_facts(adapter.folder)
    same = facts is not None and facts.preset == adapter.preset
    if not same or read_examples(adapter.folder / SET_FILE) != adapter.examples:
        raise EsrError(
            f"{adapter.folder} holds an adapter of other examples or settings: repeat that "
            "training's arguments, or name another folder."
        )
