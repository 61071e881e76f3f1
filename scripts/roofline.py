"""Is the cost model right on this machine? `python scripts/roofline.py`.

Measures the machine (bytes per second from memory, float32 FLOP per second), the software (the same
engine over a model of the same depth and vocabulary but a width of 32, so that hardly anything is
left to compute), predicts from both how fast the embedded subject generates, and measures that.
CPU seconds of this process are compared, on one thread: on a shared machine they tell more than the
clock. Everything is repeated by turns, and the median counts.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from esr_eval.backends.base import Row
from esr_eval.backends.local import LocalBackend
from esr_eval.dataset import prompts
from esr_eval.sampling import Sampling
from esr_eval.scaling.costs import Cost, decode_step, prompt_pass
from esr_eval.scaling.shapes import ModelShape, shape_of
from esr_eval.spec import AddVector, Runtime, Steering
from esr_eval.subjects import find_subject

FLOAT32 = 4
SQUARE = 1024
STREAM = 1 << 26
WIDTH = 32
DEPTHS = (6, 30)
ROWS = (1, 8, 16, 32)
REPEATS = 5


@dataclass
class Machine:
    """What was measured of the machine.

    Attributes:
        flops: Float32 FLOP per second of a square matrix product.
        bandwidth: Bytes per second that a matrix-vector product reads.
    """

    flops: float
    bandwidth: float


@dataclass
class Speed:
    """Predicted and measured CPU seconds of one batch.

    Attributes:
        rows: Rows of the batch.
        tokens: Tokens that were made.
        roofline: Seconds that the model needs at least.
        software: Seconds of everything around it.
        measured: Seconds that it took.
    """

    rows: int
    tokens: int
    roofline: float
    software: float
    measured: float


@dataclass
class Software:
    """CPU milliseconds of one step of one row where there is next to nothing to compute.

    Attributes:
        per_layer: For every further decoder layer.
        per_step: Beside that.
        steering: What an edit adds.
    """

    per_layer: float
    per_step: float
    steering: float


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure_machine() -> Machine:
    """Multiply large square matrices, and stream a matrix that no cache holds."""
    square = torch.randn(SQUARE, SQUARE)
    stream, vector = torch.randn(STREAM // SQUARE, SQUARE), torch.randn(SQUARE)
    with torch.inference_mode():
        product = [cpu_seconds(lambda: square @ square) for _ in range(2 * REPEATS)]
        read = [cpu_seconds(lambda: stream @ vector) for _ in range(2 * REPEATS)]
    return Machine(
        2 * SQUARE**3 / statistics.median(product), STREAM * FLOAT32 / statistics.median(read)
    )


def bare_model(layers: int, base: LocalBackend, folder: Path) -> LocalBackend:
    """The engine over a model of some depth, the subject's vocabulary, and hardly any width."""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=base._model.config.vocab_size,
        eos_token_id=base.ends[0],
        pad_token_id=base.pad,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return LocalBackend(
        Runtime(subject="bare", model=str(folder), steering_layer=layers // 2), "cpu"
    )


def batch_of(engine: LocalBackend, rows: int, tokens: int, edit: bool = False) -> list[Row]:
    """Real tasks; the answers of some may end early, which the others do not."""
    steering = None
    if edit:
        layer = engine.runtime.steering_layer or 0
        vector = AddVector(vector=(0.0,) * engine.shape.d_model, strength=1.0, layer=layer)
        steering = Steering(runtime=engine.runtime, edits=(vector,))
    texts = [prompt.text for prompt in prompts()]
    return [
        Row(
            tuple(engine.encode_chat([{"role": "user", "content": texts[i % len(texts)]}], None)),
            Sampling(i, 0.6, None, None, 1.1, tokens),
            steering,
        )
        for i in range(rows)
    ]


def roofline(shape: ModelShape, machine: Machine, rows: Sequence[Row], steps: int) -> float:
    """Least seconds for one batch: every pass takes what takes longer, computing or reading."""
    length = max(len(row.prompt) for row in rows)

    def seconds(cost: Cost) -> float:
        return max(cost.flop / machine.flops, cost.read / machine.bandwidth)

    whole = seconds(prompt_pass(shape, length, FLOAT32, len(rows)))
    for step in range(1, steps):
        whole += seconds(decode_step(shape, len(rows), length + step, FLOAT32))
    return whole


def measure_speeds(
    subject: LocalBackend, bare: LocalBackend, shape: ModelShape, machine: Machine, tokens: int
) -> list[Speed]:
    """Batches of several sizes on the subject and on the bare model, by turns."""
    found = []
    for size in ROWS:
        rows = batch_of(subject, size, tokens)
        made = max(len(one.tokens) for one in subject.generate(rows))  # warms up, too
        bare.generate(rows)
        measured, software = [], []
        for _ in range(REPEATS):
            measured.append(cpu_seconds(partial(subject.generate, rows)))
            software.append(cpu_seconds(partial(bare.generate, rows)))
        found.append(
            Speed(
                size,
                size * made,
                roofline(shape, machine, rows, made),
                statistics.median(software),
                statistics.median(measured),
            )
        )
    return found


def measure_software(shallow: LocalBackend, deep: LocalBackend, tokens: int) -> Software:
    """Steps of one row, shallow and deep, with and without an edit, by turns."""
    times: dict[tuple[int, bool], list[float]] = {}
    engines = (shallow, deep)
    for repeat in range(4 * REPEATS + 1):
        for which, engine in enumerate(engines):
            for edit in (False, True) if repeat % 2 else (True, False):
                rows = batch_of(engine, 1, tokens, edit)
                seconds = cpu_seconds(partial(engine.generate, rows))
                if repeat:  # the first is for warming up
                    times.setdefault((which, edit), []).append(seconds / tokens)
    plain = [statistics.median(times[which, False]) for which in (0, 1)]
    per_layer = (plain[1] - plain[0]) / (deep.shape.n_layers - shallow.shape.n_layers)
    steered = [
        with_edit - without
        for which in (0, 1)
        for with_edit, without in zip(times[which, True], times[which, False], strict=True)
    ]
    return Software(
        1000 * per_layer,
        1000 * (plain[0] - per_layer * shallow.shape.n_layers),
        1000 * statistics.median(steered),
    )


def show(
    machine: Machine, software: Software, speeds: Sequence[Speed], loads: Sequence[float]
) -> None:
    """Everything for people."""
    console = Console()
    console.print(
        f"One thread: {machine.flops / 1e9:.0f} GFLOP/s (float32), {machine.bandwidth / 1e9:.1f} "
        f"GB/s. Load average {loads[0]:.1f} before, {loads[1]:.1f} after."
    )
    console.print(
        f"Software, CPU ms a step of one row: {software.per_layer:.3f} a layer and "
        f"{software.per_step:.2f}; an edit adds {software.steering:.2f}."
    )
    table = Table(title="smollm2-135m, CPU ms a step of the batch")
    for column in ("rows", "roofline", "software", "predicted", "measured", "measured/predicted"):
        table.add_column(column, justify="right")
    for one in speeds:
        steps = one.tokens / one.rows
        predicted = one.roofline + one.software
        parts = (one.roofline, one.software, predicted, one.measured)
        table.add_row(
            str(one.rows),
            *(f"{1000 * part / steps:.1f}" for part in parts),
            f"{one.measured / predicted:.2f}",
        )
    table.caption = "Tokens per CPU second: " + ", ".join(
        f"{one.tokens / one.measured:.0f} at {one.rows}" for one in speeds
    )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=32, help="Length of an answer.")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    before = os.getloadavg()[0]
    machine = measure_machine()
    subject = find_subject("smollm2-135m")
    engine = LocalBackend(subject.runtime(), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        shallow, deep = (bare_model(n, engine, Path(folder) / str(n)) for n in DEPTHS)
        software = measure_software(shallow, deep, args.tokens)
        speeds = measure_speeds(engine, deep, shape_of(subject), machine, args.tokens)
    loads = (before, os.getloadavg()[0])
    if args.json:
        whole = {"machine": machine, "software": software}
        plain = {name: asdict(part) for name, part in whole.items()}
        print(json.dumps({**plain, "speeds": [asdict(s) for s in speeds], "load": loads}, indent=1))
    else:
        show(machine, software, speeds, loads)


if __name__ == "__main__":
    main()
