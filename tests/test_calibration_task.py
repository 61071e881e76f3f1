"""The calibration task through Inspect, with a simulated model and judge on real files."""

from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import eval_retry
from inspect_ai.log import EvalLog
from simulation import LABELS, MODEL, TRUE_STRENGTH, Subject, install

from esr_eval.cache import CACHE_ENV
from esr_eval.dataset import prompts
from esr_eval.strength_search import round_plan
from esr_eval.strengths import cache_folder
from esr_eval.tasks.calibrate import calibrate

PRIOR = {"prior_mean": 20, "prior_std": 10, "lower": 0, "upper": 50, "samples_per_round": 4}


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    return install(monkeypatch)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    return str(path)


def explained(log: EvalLog) -> str:
    return f"{log.status}: {log.error.message if log.error else ''}"


def run(labels: str, tmp_path: Path, judge: str = "noisy", **args: Any) -> EvalLog:
    (log,) = inspect_eval(
        calibrate,
        model=MODEL,
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
    (total,) = metrics["generations"].values()
    assert total.value == 90
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
