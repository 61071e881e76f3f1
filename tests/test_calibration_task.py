"""The calibration task through Inspect, with a simulated model and judge on real files."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import eval_retry
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)

from esr_eval.dataset import prompts
from esr_eval.provider import ESRModelAPI
from esr_eval.scorers.rubric import parse_request
from esr_eval.sealed import CACHE_ENV
from esr_eval.spec import Boost, Steering
from esr_eval.strength_search import round_plan
from esr_eval.strengths import cache_folder
from esr_eval.tasks.calibrate import calibrate

USAGE = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
TRUE_STRENGTH = {1: 12.0, 2: 30.0}
PRIOR = {"prior_mean": 20, "prior_std": 10, "lower": 0, "upper": 50, "samples_per_round": 4}


class Subject:
    """Stands in for the language model: its answer names the boost that it got."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []
        self.fail_after: int | None = None

    async def generate(self, config: GenerateConfig) -> ModelOutput:
        spec = Steering.from_extra_body(config.extra_body)
        assert spec is not None
        (edit,) = spec.edits
        assert isinstance(edit, Boost)
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the power went off")
        self.calls.append((edit.latent, edit.strength))
        output = ModelOutput.from_content(
            "sim", f"latent {edit.latent} boost {edit.strength!r} seed {config.seed}"
        )
        output.usage = USAGE
        return output


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    simulated = Subject()

    async def generate(
        self: Any, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        return await simulated.generate(config)

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    monkeypatch.setattr(ESRModelAPI, "preflight", lambda self: None)
    return simulated


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.csv"
    path.write_text("index_in_sae,label\n1,oceans\n2,taxes\n")
    return str(path)


def verdict(response: str) -> ModelOutput:
    """A noisy judge whose mean falls with the boost and is 30 at the latent's true strength."""
    _, latent, _, boost, _, seed = response.split()
    ratio = float(boost) / TRUE_STRENGTH[int(latent)]
    mean = 95 / (1 + math.exp(6 * (ratio - 1) + math.log(95 / 30 - 1)))
    noise = random.Random(response).gauss(0, 10)
    score = min(100, max(0, round(mean + noise)))
    quotes = {"first": f"latent {latent}", "last": f"seed {seed}"}
    output = ModelOutput.from_content(
        "noisy", json.dumps({"attempts": [{**quotes, "score": score}]})
    )
    output.usage = USAGE
    return output


@modelapi(name="sim-judge")
class SimulatedJudge(ModelAPI):
    """`sim-judge/noisy` judges; `sim-judge/mute` never gives a verdict."""

    async def generate(
        self, input: list[ChatMessage], tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        if self.model_name == "noisy":
            return verdict(parse_request(input).response)
        output = ModelOutput.from_content(self.model_name, "I cannot judge this.")
        output.usage = USAGE
        return output


def explained(log: EvalLog) -> str:
    return f"{log.status}: {log.error.message if log.error else ''}"


def run(labels: str, tmp_path: Path, judge: str = "noisy", **args: Any) -> EvalLog:
    (log,) = inspect_eval(
        calibrate,
        model="esr/llama-8b",
        model_roles={"grader": f"sim-judge/{judge}"},
        task_args={"latents": labels, "prior": PRIOR, **args},
        log_dir=str(tmp_path / "logs"),
        display="none",
        max_samples=8,
    )
    return log


def values(log: EvalLog) -> dict[Any, dict[str, Any]]:
    assert log.samples is not None
    return {
        sample.metadata["latent"]: sample.scores["strength"].value  # type: ignore[index,misc]
        for sample in log.samples
    }


def test_strengths_are_found_kept_and_taken_from_the_cache(
    subject: Subject, labels: str, tmp_path: Path, cache: Path
) -> None:
    log = run(labels, tmp_path)
    assert log.status == "success", explained(log)
    for latent, value in values(log).items():
        assert value["strength"] == pytest.approx(TRUE_STRENGTH[latent], rel=0.25)
        assert value["achieved_score"] == pytest.approx(30, abs=20)
        assert (value["generations"], value["cached"]) == (10 * 4 + 5, 0)
    assert len(list(cache.glob("*.json"))) == 2
    assert log.results is not None
    metrics = {score.name: score.metrics for score in log.results.scores}
    assert metrics["generations"]["total"].value == 90
    assert log.eval.metadata is not None and log.eval.metadata["judge"] == "sim-judge/noisy"

    made = len(subject.calls)
    again = run(labels, tmp_path)
    assert len(subject.calls) == made
    assert {v["cached"] for v in values(again).values()} == {1}
    assert values(again)[1]["strength"] == values(log)[1]["strength"]

    fresh = run(labels, tmp_path, fresh=True)
    assert len(subject.calls) == 2 * made
    assert {v["cached"] for v in values(fresh).values()} == {0}
    assert values(fresh)[1]["strength"] == values(log)[1]["strength"]


def test_interrupted_search_goes_on_where_it_stopped_and_ends_the_same(
    subject: Subject, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    subject.fail_after = 50
    broken = run(labels, tmp_path)
    assert broken.status == "error"
    subject.fail_after = None
    (log,) = eval_retry(broken, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", explained(log)
    # At most one unfinished round for each latent is asked again.
    assert len(subject.calls) <= 90 + 2 * 4
    assert not list(cache.glob("*.partial.json"))

    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "other"))
    whole = run(labels, tmp_path)
    assert {k: v["strength"] for k, v in values(whole).items()} == {
        k: v["strength"] for k, v in values(log).items()
    }


def test_judge_that_never_judges_ends_the_search_and_leaves_no_record(
    subject: Subject, labels: str, tmp_path: Path, cache: Path
) -> None:
    log = run(labels, tmp_path, judge="mute", n_latents=1)
    assert log.status == "success", explained(log)
    assert log.samples is not None and log.samples[0].scores is not None
    score = log.samples[0].scores["strength"]
    assert score.reason == "grader_failed" and isinstance(score.value, float)
    assert "4 rounds stayed unjudged" in log.samples[0].output.completion
    assert len(subject.calls) == 4 * 4
    assert not list(cache.glob("*.json"))


def test_rounds_draw_different_tasks_and_seeds_reproducibly() -> None:
    first, second = (round_plan(prompts(), 5, 0, 7, number) for number in (0, 1))
    assert first == round_plan(prompts(), 5, 0, 7, 0)
    assert first != second
    assert len({prompt.topic for prompt, _ in first}) == 5
    assert len(round_plan(prompts(), 100, 0, 7, 0)) == 100
