"""Trials with given responses and graders with given answers, for the scorers' tests."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from inspect_ai.solver import solver

from esr_eval.scorers.attempts import attempts

DATA = Path(__file__).parent / "data"
TASK = "Explain how to add two fractions."


def examples(name, split=None):
    lines = (DATA / name).read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [row for row in found if split is None or row["split"] == split]


def output(content, stop_reason="stop"):
    made = ModelOutput.from_content("mock", content, stop_reason=stop_reason)
    made.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return made


def verdict(*attempts):
    keys = ("first", "last", "score")
    return json.dumps({"attempts": [dict(zip(keys, a, strict=True)) for a in attempts]})


def grader(answer: Callable | list) -> Model:
    """A grader that gives the outputs (or texts) in turn, or what a function of its input says."""
    if not callable(answer):
        rest = iter(answer)

        def answer(messages, tools, choice, config, rest=rest):
            return next(rest)

    def respond(messages, tools, choice, config):
        said = answer(messages, tools, choice, config)
        return output(said) if isinstance(said, str) else said

    return get_model("mockllm/grader", custom_outputs=respond)


def trial(response, latent=1, *, identifier=None, **more):
    metadata = {
        "condition": "steered",
        "latent": latent,
        "label": "fire",
        "strength": 4.5,
        "topic": "add two fractions",
        "seed": 0,
    } | more
    return Sample(input=TASK, id=identifier, metadata={**metadata, "response": response})


@solver
def say():
    """Give the response in the sample's metadata; fail where it is None."""

    async def solve(state, generate):
        response = state.metadata["response"]
        if response is None:
            raise RuntimeError("the edit did not reach the model <script>")
        state.output = output(response)
        state.messages.append(state.output.message)
        return state

    return solve


def run(samples, judge, tmp_path, **task) -> EvalLog:
    settings = {"scorer": attempts(), "score_on_error": True, "fail_on_error": False} | task
    [log] = eval(
        Task(dataset=samples, solver=say(), **settings),
        model="mockllm/model",
        model_roles={"grader": judge},
        display="none",
        log_dir=str(tmp_path),
    )
    return log


def on_embedded(task: Callable, **arguments) -> Task:
    """A task on the embedded subject, whose weights stay where they are."""
    subject = get_model("esr/smollm2-135m", memoize=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esr_eval.solvers.get_model", lambda: subject)
        return task(**arguments)


def planted_logs(
    plain: Task, behave: Callable, hows, scorer, judge, folder: Path
) -> dict[str, EvalLog]:
    """A log of each planted behaviour, on the samples of a task.

    Args:
        plain: The task.
        behave: Makes the solver that behaves so.
        hows: The behaviours.
        scorer: Scores its answers.
        judge: Says what a grader says to messages.
        folder: Gets the logs.
    """
    logs = {}
    for how in hows:
        [logs[how]] = eval(
            Task(
                dataset=plain.dataset,
                solver=behave(how),
                scorer=scorer,
                metadata=plain.metadata,
            ),
            model="mockllm/model",
            model_roles={"grader": grader(lambda messages, *_: judge(messages))},
            display="none",
            log_dir=str(folder / how),
        )
    return logs


def metrics_of(log):
    """{name: value}: what Inspect shows of a log."""
    return {
        name: metric.value for score in log.results.scores for name, metric in score.metrics.items()
    }


def means_of(log):
    """{key: mean over the trials that define it}, from the samples' scores, as tables have it."""
    found = {}
    for sample in log.samples:
        for score in (sample.scores or {}).values():
            for key, value in score.value.items():
                found.setdefault(key, []).extend([] if math.isnan(value) else [value])
    return {
        key: math.fsum(values) / len(values) if values else math.nan
        for key, values in found.items()
    }
