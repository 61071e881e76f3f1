"""The calibration task through Inspect, with a simulated model and judge on real files."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from inspect_ai import Task, eval_retry
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ModelOutput
from simulation import LABELS, MODEL, SUBJECT, TRUE_STRENGTH, Subject, install

from esr_eval._util.paths import CACHE_ENV
from esr_eval.calibration.methods import responses_per_latent
from esr_eval.calibration.search import bisect, round_plan
from esr_eval.calibration.store import cache_folder
from esr_eval.dataset import prompts
from esr_eval.paper.estimate import estimate
from esr_eval.paper.run import Step
from esr_eval.provider.api import ESRModelAPI
from esr_eval.subjects import CalibrationPrior, find_subject
from esr_eval.tasks.calibrate import calibrate, strength

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
    (shown,) = log.results.scores
    every = values(log).values()
    assert {name: metric.value for name, metric in shown.metrics.items()} == {
        "strength": pytest.approx(fmean(one["strength"] for one in every)),
        "achieved_score": pytest.approx(fmean(one["achieved_score"] for one in every)),
        "generations": 90,
        "unscored": 0,
        "cached": 0,
    }
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
    assert len(subject.calls) == 90  # nothing is asked twice, not in an unfinished round either
    assert not list(cache.glob("*.partial.json"))

    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "other"))
    whole = run(labels, tmp_path)
    assert {k: v["strength"] for k, v in values(whole).items()} == {
        k: v["strength"] for k, v in values(log).items()
    }


def test_search_by_the_curve_takes_fewer_responses_and_says_so_and_goes_on_where_it_stopped(
    subject: Subject, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    subject.fail_after = 20
    broken = run(labels, tmp_path, method="curve")
    assert broken.status == "error" and list(cache.glob("*.partial.json"))
    subject.fail_after = None
    (log,) = eval_retry(broken, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", explained(log)
    for latent, value in values(log).items():
        assert value["strength"] == pytest.approx(TRUE_STRENGTH[latent], rel=0.25)
        assert 4 + 5 < value["generations"] <= 16 + 5
    assert len(subject.calls) == sum(value["generations"] for value in values(log).values())
    assert log.eval.metadata is not None and "method=curve" in log.eval.metadata["deviations"][-1]
    assert log.samples is not None and "method curve" in log.samples[0].output.completion

    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "other"))
    (alone, *_) = values(run(labels, tmp_path, method="curve", n_latents=1)).items()
    # The same without interruption, and without the other latent.
    assert alone[1]["strength"] == values(log)[alone[0]]["strength"]

    # A record of one method is not the other's.
    found = run(labels, tmp_path, n_latents=1)
    assert {value["cached"] for value in values(found).values()} == {0}


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


def test_solver_serves_a_task_of_ones_own(subject: Subject, tmp_path: Path) -> None:
    sample = Sample(input="latent 1", metadata={"latent": 1, "label": "oceans"})
    prior = CalibrationPrior.model_validate({**PRIOR, "rounds": 2, "samples_per_round": 1})
    (log,) = inspect_eval(
        Task(
            dataset=[sample],
            solver=bisect(prior, 0.6, check_samples=0, seed=0, fresh=False, n_latents=1),
            scorer=strength(),
        ),
        model=MODEL,
        model_roles={"grader": "sim-judge/noisy"},
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", explained(log)
    value = values(log)[1]
    assert value["generations"] == 2
    assert math.isnan(value["achieved_score"])
    assert log.samples is not None and "**Strength" in log.samples[0].output.completion


def test_the_estimate_counts_every_response_of_a_calibration(
    subject: Subject, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    async def generate(
        self: Any, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        lengths.append(config.max_tokens)
        return subject.answer(config)

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    (log,) = inspect_eval(
        calibrate,
        model=MODEL,
        model_roles={"grader": "sim-judge/noisy"},
        task_args={"latents": labels},
        max_tokens=12,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", explained(log)
    known = find_subject(SUBJECT)
    each = responses_per_latent(known)
    assert len(subject.calls) == 2 * each
    assert known.calibration is not None and set(lengths) == {known.calibration.max_tokens}
    short = known.model_copy(update={"max_tokens": 12})
    step = Step("calibrate", "calibrate", lambda logs: {}, generations=2 * each)
    assert estimate([step], short, "sim-judge/noisy").generated == sum(lengths)


def test_what_is_left_out_of_a_file_of_labels_is_in_the_log(
    subject: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.csv"
    path.write_text(LABELS + "3,\n4,  \n1,seas\n")
    log = run(str(path), tmp_path)
    assert log.status == "success" and len(values(log)) == 2, explained(log)
    assert log.eval.metadata is not None
    without, several = log.eval.metadata["labels"]
    assert "without a label" in without and without.endswith(": 2")
    assert "several labels: 1" in several
    assert without in caplog.text and several in caplog.text
