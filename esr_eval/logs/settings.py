"""What of a log's header decides its numbers: two logs that agree in it measure the same thing."""

from typing import Any

from inspect_ai.log import EvalLog

from esr_eval.logs.reading import subject_of
from esr_eval.logs.runs import bound_judge


def settings_of(header: EvalLog) -> dict[str, Any]:
    """Experiment, subject and runtime, solver, sampling, judge."""
    about, spec = header.eval.metadata or {}, header.eval
    sampling = spec.model_generate_config.merge(header.plan.config)
    return {
        "task": spec.task.rpartition("/")[2],
        "task_version": spec.task_version,
        "experiment": about.get("experiment_id"),
        "condition": about.get("condition"),
        "subject": subject_of(header),
        # Logs of before the runtime was kept say it by the model and its arguments.
        "runtime": about.get("runtime") or {"model": spec.model, **spec.model_args},
        # Parameters at their empty defaults are left out: new ones change nothing.
        "solvers": [
            [step.solver, {name: value for name, value in step.params.items() if value}]
            for step in header.plan.steps
        ],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "judge": bound_judge(header),
    }
