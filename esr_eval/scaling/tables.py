"""The cost model as tables for a terminal: computed, not measured."""

from collections.abc import Sequence

from rich.table import Table

from esr_eval.paper.estimate import PROMPT_TOKENS, estimate
from esr_eval.paper.steps import Step
from esr_eval.scaling.costs import (
    PAPER_BOOSTS,
    PAPER_CLAMPS,
    Cost,
    decode_step,
    dense_edit,
    dense_memory,
    kv_bytes,
    prompt_pass,
    sparse_edit,
    sparse_memory,
)
from esr_eval.scaling.paper import JUDGE_LIMITS, SECONDS_PER_HOUR, hours, judge_hours
from esr_eval.scaling.shapes import BYTES, ModelShape
from esr_eval.scaling.speed import NO_SOFTWARE, Plan, Software
from esr_eval.scaling.wire import (
    NDIF_LIMIT,
    Batch,
    answers_per_reading,
    ndif_answer,
    ndif_request,
    residual_bytes,
    vllm_request,
)
from esr_eval.subjects import Subject

BATCHES = (1, 8, 32, 128)
HALF = 2
"""Bytes of a 16 bit value: a residual of the large subjects, and an SAE's value where it fits."""

WAITED = 10
"""Seconds in a queue, to see what waiting does to a run."""
READS_ALL = "detectors"
"""The one task that reads the whole SAE; all others read named latents."""


def cost_table(shape: ModelShape, dtype: str, rows: int, context: float) -> Table:
    """FLOP of one token, and bytes of one step of a batch: model, our edit, the whole SAE.

    Args:
        shape: The model.
        dtype: Of weights.
        rows: Rows of the batch.
        context: Positions in a row's cache.
    """
    width = BYTES[dtype]
    sae_width = max(width, HALF)
    table = Table(title=f"{shape.name} in {dtype}, {rows} rows, {context:.0f} tokens of context")
    table.add_column("", no_wrap=True)
    for column in ("FLOP/token", "", "bytes/step", "", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    model = decode_step(shape, rows, context, width)
    held = shape.parameters * width + rows * context * kv_bytes(shape, width)
    prompt = prompt_pass(shape, PROMPT_TOKENS, width)
    table.add_row("token made", *_cells(model, rows, model), _size(held))
    table.add_row("prompt read", *_cells(prompt, PROMPT_TOKENS, None), "")
    clamps = (("1 boost", 0), (f"1 boost, {PAPER_CLAMPS} clamps", PAPER_CLAMPS))
    for name, clamped in clamps:
        edit = sparse_edit(shape, 1, PAPER_BOOSTS, clamped, rows)
        memory = sparse_memory(shape, PAPER_BOOSTS, clamped, rows)
        table.add_row(name, *_cells(edit, rows, model), _size(memory))
    dense = dense_edit(shape, 1, sae_width, rows)
    table.add_row("whole SAE", *_cells(dense, rows, model), _size(dense_memory(shape, sae_width)))
    return table


def speed_table(plan: Plan, context: float, positions: int, software: Software) -> Table:
    """What the GPUs can do at best, for several sizes of batch.

    Args:
        plan: How they are used.
        context: Positions in a row's cache, on average.
        positions: Positions in the end, which have to fit.
        software: What a step takes at least.
    """
    how = "together" if plan.together else "in turn"
    title = f"{plan.shape.name} in {plan.dtype} on {plan.gpus} x {plan.hardware.name}, at best"
    table = Table(title=title)
    for column in ("rows of a copy", "ms a step", "tokens/s", "waits for"):
        table.add_column(column, justify="right")
    most = plan.most_rows(positions)
    for rows in sorted({*(rows for rows in BATCHES if rows < most), most}):
        table.add_row(
            f"{rows}{' (all that fit)' if rows == most else ''}",
            f"{1000 * plan.step(rows, context, software):.2f}",
            f"{plan.tokens_per_second(rows, context, software):,.0f}",
            waits_for(plan, rows, context, software),
        )
    bound = plan.compute_bound_from(context)
    table.caption = (
        f"{plan.copies} x {plan.each} GPUs {how}. Computing is the limit "
        f"{'at no number of rows' if bound is None else f'from {bound} rows on'}."
    )
    if software != NO_SOFTWARE:
        below = plan.software_bound_below(context, software)
        table.caption += f" Below {below} rows Python is." if below else " Python never is."
    return table


def waits_for(plan: Plan, rows: int, context: float, software: Software) -> str:
    """What takes longest in a step."""
    cost = decode_step(plan.shape, rows, context, plan.width)
    if software.step(plan.shape) > plan.seconds(cost, rows):
        return "Python"
    if plan.talk(rows) > plan.seconds(cost, rows) / 2:
        return "the GPUs' link"
    if cost.flop / plan.hardware.flops > cost.read / plan.hardware.bandwidth:
        return "computing"
    weights = decode_step(plan.shape, 0, context, plan.width).read
    return "reading weights" if weights > cost.read / 2 else "reading caches"


def paper_table(
    steps: Sequence[Step], subject: Subject, plan: Plan | None, rows: int, software: Software
) -> Table:
    """The whole paper: tokens, hours at best, judge.

    Args:
        steps: Its steps.
        subject: Who answers.
        plan: The GPUs; None where the model does not fit.
        rows: Rows of each copy's batch.
        software: What a step takes at least.
    """
    found = estimate(steps, subject, subject.grader)
    table = Table(title=f"The whole paper on {subject.name}: {len(steps)} steps", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("responses, at most", f"{found.generations:,}")
    table.add_row("tokens made", f"{found.generated:,}")
    table.add_row("tokens read", f"{found.read:,}")
    if plan is None:
        table.add_row("hours", "the model does not fit")
    else:
        time = hours(plan, found, subject, rows, software)
        table.add_row(f"hours at best, {time.rows} rows a copy", f"{time.total:.2f}")
    table.add_section()
    table.add_row("judge calls", f"{found.verdicts:,}")
    table.add_row("judge tokens", f"{found.judge_read + found.judge_written:,}")
    table.add_row("dollars", "?" if found.dollars is None else f"{found.dollars:,.2f}")
    if found.dollars != 0:
        for tier, limits in JUDGE_LIMITS.items():
            least, which = judge_hours(found, limits)
            table.add_row(f"hours of judging, {tier} ({which})", f"{least:.1f}")
    return table


def wire_table(shape: ModelShape, steps: Sequence[Step], subject: Subject, rows: int) -> Table:
    """Requests and bytes of the remote backends, before compression.

    Args:
        shape: The model.
        steps: The steps of the run.
        subject: Who answers.
        rows: Rows of a batch.
    """
    table = Table(title=f"{shape.name} on a server", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    answer = subject.max_tokens
    batches = (
        ("1 row, 1 boost", Batch(1, PROMPT_TOKENS, answer)),
        (
            f"1 row, 1 boost, {PAPER_CLAMPS} clamps",
            Batch(1, PROMPT_TOKENS, answer, 1, PAPER_CLAMPS),
        ),
        (f"{rows} rows, {rows} boosts", Batch(rows, PROMPT_TOKENS, answer, rows)),
        (
            f"{rows} rows, {rows} boosts, {PAPER_CLAMPS} clamps",
            Batch(rows, PROMPT_TOKENS, answer, rows, PAPER_CLAMPS),
        ),
    )
    for name, batch in batches:
        table.add_row(f"NDIF request: {name}", _size(ndif_request(shape, batch)))
    table.add_row(f"NDIF answer: {rows} rows", _size(ndif_answer(batches[-1][1])))
    requests = sum(-(-step.generations // rows) for step in steps)
    table.add_row("NDIF requests of the whole paper", f"{requests:,}")
    waiting = f"{requests * WAITED / SECONDS_PER_HOUR:.1f}"
    table.add_row(f"hours for every {WAITED} s that a request waits", waiting)
    for name, batch in batches[:2]:
        table.add_row(f"vLLM request: {name}", _size(vllm_request(shape, batch)))
    table.add_section()
    positions = PROMPT_TOKENS + answer
    width = max(BYTES[subject.dtype], HALF)
    size = residual_bytes(shape, positions, width)
    table.add_row(f"whole SAE read over {positions} tokens: residuals", _size(size))
    table.add_row("answers in one request", f"{answers_per_reading(shape, positions, width)}")
    table.add_row("answers within NDIF's websocket", f"{NDIF_LIMIT // size}")
    readings = sum(step.readings for step in steps if step.task == READS_ALL)
    table.add_row("residuals of the whole paper", _size(readings * size))
    return table


def _cells(cost: Cost, tokens: int, model: Cost | None) -> tuple[str, str, str, str]:
    if model is None:
        return _big(cost.flop / tokens), "", _size(cost.read), ""
    shares = (cost.flop / model.flop, cost.read / model.read)
    flop, read = (f"{share:.3%}" for share in shares)
    return _big(cost.flop / tokens), flop, _size(cost.read), read


def _big(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000 or unit == "G":
            break
        number /= 1000
    return f"{number:.3g} {unit}"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.3g} {unit}"
