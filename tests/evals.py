"""Real evaluations of the embedded subject, small."""

from inspect_ai import eval as inspect_eval


def embedded(task, log_dir, *, max_tokens=16, **task_args):
    """The log of a task of this package, run to its end on the CPU."""
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args=task_args,
        max_tokens=max_tokens,
        log_dir=str(log_dir),
        display="none",
    )
    assert log.status == "success", log.error
    return log
