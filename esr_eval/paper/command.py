"""The command `esr-eval paper`: estimate, ask, run, report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from esr_eval._util.terminal import Terminal, note
from esr_eval.paper.estimate import estimate, estimate_table
from esr_eval.paper.run import Paper, choose, finished, identity, run_paper
from esr_eval.paper.steps import left_out, plan_steps
from esr_eval.subjects import find_subject

ASK_FROM_HOURS = 1.0
"""Runs that take longer, or cost money, are begun only after a yes."""
OFFLINE_SECOND_JUDGE = "esr-judge/lexical"
"""The further judge of a subject whose own judge is the offline one."""


def run(
    model: str,
    *,
    scale: str,
    logs: Path,
    output: Path | None,
    seed: int,
    grader: str | None,
    graders: Sequence[str],
    adapter: str | None,
    latents: str | None,
    detectors: str | None,
    vectors: str | None,
    model_args: dict[str, Any],
    speed: float | None,
    price: tuple[float, float] | None,
    max_tokens: int | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Run the paper; see `esr-eval paper --help` for the arguments."""
    subject = find_subject(model)
    if max_tokens is not None:
        subject = subject.model_copy(update={"max_tokens": max_tokens})
    paper = Paper(subject, model_args, adapter, grader, logs, max_tokens)
    further = tuple(graders)
    if not further and paper.judge.startswith("esr-judge/"):
        further = (OFFLINE_SECOND_JUDGE,)
    choices = choose(
        paper,
        scale=scale,
        seed=seed,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        graders=further,
    )
    steps, console = plan_steps(choices), Terminal()
    done = finished(logs, identity(paper, choices), note)
    console.print(estimate_table(steps, list(done), subject, paper.judge, speed, price))
    for reason in left_out(choices):
        console.print(f"Left out: experiment {reason}")
    if dry_run:
        return
    rest = [step for step in steps if step.key not in done]
    cost = estimate(rest, subject, paper.judge, speed=speed, price=price)
    large = cost.hours is None or cost.hours > ASK_FROM_HOURS or cost.dollars != 0
    if rest and large and not yes and sys.stdin.isatty():
        typer.confirm("Begin?", abort=True)
    made = run_paper(paper, choices, console)
    from esr_eval.report import write_report

    page = write_report([Path(log) for log in made], output or logs / "report")
    console.print(f"The report: {page}")
    console.print(f"Every trial: inspect view --log-dir {logs}")
