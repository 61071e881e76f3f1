"""Latents chosen and strengths found inside a run, with a simulated model and judge."""

import re
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import eval_retry
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import GenerateConfig, get_model
from simulation import LABELS, MODEL, NORM, SUBJECT, TRUE_STRENGTH, Subject, install

from esr_eval import dataset
from esr_eval._util.paths import CACHE_ENV
from esr_eval.calibration.cost import PRICES, VERDICT_READ, VERDICT_WRITTEN
from esr_eval.calibration.store import cache_folder
from esr_eval.data.labels import write_labels
from esr_eval.logs.conditions import read_condition
from esr_eval.logs.replay import replay_log
from esr_eval.scorers.grader import BATCH_RATES
from esr_eval.subjects import find_subject
from esr_eval.tasks import experiment
from esr_eval.tasks.boost_sweep import boost_sweep
from esr_eval.tasks.esr import esr

PRIOR = {"prior_mean": 20, "prior_std": 10, "lower": 0, "upper": 50, "samples_per_round": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    return install(monkeypatch)


@pytest.fixture
def labels(tmp_path: Path) -> str:
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    return str(path)


@pytest.fixture
def whole_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Labels of 60 latents; every third is abstract, every seventh fires on the tasks."""
    path = tmp_path / "sae.csv"
    rows = [(i, f"quality {i}" if i % 3 == 0 else f"thing {i}") for i in range(60)]
    write_labels(path, [*rows, (60, "a latent too many"), (99_999_999, "another")])
    monkeypatch.setattr(experiment, "MOST_AT_ONCE", 50)
    return str(path)


def run(task: Any, tmp_path: Path, judge: str = "noisy", **args: Any) -> EvalLog:
    (log,) = inspect_eval(
        task,
        model=MODEL,
        model_roles={"grader": f"sim-judge/{judge}"},
        task_args=args,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    return log


def told(log: EvalLog) -> list[dict[str, Any]]:
    assert log.status == "success" and log.samples, log.error
    return [sample.metadata for sample in log.samples]


def test_strengths_are_searched_once_and_stand_in_the_log(
    subject: Subject, labels: str, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = run(esr, tmp_path, latents=labels, trials_per_latent=3, prior=PRIOR)
    for about in told(log):
        true = TRUE_STRENGTH[about["latent"]]
        assert about["strength"] == pytest.approx(true, rel=0.25)
        assert about["strength_found"] == "calibrated" and "pending" not in about
        assert about["share_of_norm"] == pytest.approx(about["strength"] * 2 / NORM, abs=1e-3)
    searched = 2 * (10 * 4 + 5)
    answers = 16  # that the residual was measured on
    assert len(subject.calls) == searched + answers + 6
    assert "96 responses" in caplog.text and "2 of 2 strengths to be found" in caplog.text
    assert len(list(cache.glob("*.json"))) == 2

    again = run(esr, tmp_path, latents=labels, trials_per_latent=3, prior=PRIOR)
    assert len(subject.calls) == searched + answers + 12
    # Known from the beginning, so nothing is prepared; trial by trial the same.
    assert [step.solver for step in again.plan.steps] == ["esr_eval/steered_generate"]
    first = {sample.id: sample.metadata["strength"] for sample in log.samples or []}
    assert {sample.id: sample.metadata["strength"] for sample in again.samples or []} == first

    paired = read_condition(log.location)
    assert set(paired.trials["latent"]) == {1, 2} and paired.trials["strength"].min() > 5
    assert [one.trial.strength for one in replay_log(log.location).planned]


def test_a_judge_bound_in_batches_is_told_with_what_the_run_takes(
    subject: Subject,
    labels: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BATCH_RATES, "sim-judge", 0.5)
    monkeypatch.setitem(PRICES, "sim-judge/noisy", (1.0, 5.0))
    judge = get_model("sim-judge/noisy", config=GenerateConfig(batch=True), memoize=False)
    (log,) = inspect_eval(
        esr,
        model=MODEL,
        model_roles={"grader": judge},
        task_args={"latents": labels, "trials_per_latent": 3, "prior": PRIOR},
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert len(told(log)) == 6
    found = re.search(
        r"96 judge calls \(\$([\d.]+), in batches that can take 24 hours\)", caplog.text
    )
    tokens = VERDICT_READ + find_subject(SUBJECT).max_tokens + 5 * VERDICT_WRITTEN
    assert found and float(found[1]) == pytest.approx(96 * tokens / 1e6 / 2, abs=0.006)


def test_scores_are_clustered_by_the_latents_that_the_run_chose(
    subject: Subject, whole_sae: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = run(esr, tmp_path, latents=whole_sae, n_latents=4, trials_per_latent=2, strength=9)
    found = {about["latent"] for about in told(log)}
    assert len(found) == 4
    assert all(latent % 3 and latent % 7 for latent in found)
    assert set(read_condition(log.location).trials["latent"]) == found
    passed = [p for s in log.samples or [] for p in s.store.get("latents_passed_over", [])]
    reasons = {(one["latent"] % 3 == 0, one["latent"] % 7 == 0): one["reason"] for one in passed}
    assert reasons[True, False] == "abstract" and set(reasons.values()) <= {"abstract", "relevant"}

    [line] = [r.getMessage() for r in caplog.records if "latents are fit of" in r.getMessage()]
    assert "4 latents are fit of 12 tried" in line
    assert "the label is not concrete enough: " in line
    assert "labels of latents that the SAE does not have: 2" in line

    unsteered = run(
        esr, tmp_path, latents=whole_sae, n_latents=4, trials_per_latent=2, steering=False
    )
    ids = [sample.id for sample in log.samples or []]
    assert [sample.id for sample in unsteered.samples or []] == ids
    pairs = [(about["latent"], about["topic"], about["seed"]) for about in told(log)]
    assert [(a["latent"], a["topic"], a["seed"]) for a in told(unsteered)] == pairs
    # Activations are kept: no concrete latent is read twice, in this run or the next.
    read = [latent for latents in subject.read if latents != "norm" for latent in latents]
    assert len(read) == len(set(read)) * 38


def test_more_latents_than_are_fit_are_counted_as_failed_trials(
    subject: Subject, whole_sae: str, tmp_path: Path
) -> None:
    log = run(esr, tmp_path, latents=whole_sae, n_latents=40, trials_per_latent=1, strength=9)
    assert log.status == "error"  # a sixth of the trials is more than may fail
    partial = read_eval_log(log.location)
    missing = [sample for sample in partial.samples or [] if sample.error]
    assert missing and "Only 34 of the 40 wanted latents are fit" in missing[0].error.message
    kept = replay_log(log.location)
    assert len(kept.planned) == sum(sample.error is None for sample in partial.samples or [])


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(
    subject: Subject, labels: str, tmp_path: Path
) -> None:
    args = {"latents": labels, "trials_per_latent": 3, "prior": PRIOR}
    subject.fail_after = 60
    broken = run(esr, tmp_path, **args)
    assert broken.status == "error"
    subject.fail_after = None
    (log,) = eval_retry(broken, log_dir=str(tmp_path / "logs"), display="none")
    told(log)
    assert len(subject.calls) == 16 + 90 + 6


def test_a_search_that_cannot_be_judged_fails_its_trials_and_is_not_repeated(
    subject: Subject, labels: str, tmp_path: Path
) -> None:
    log = run(esr, tmp_path, judge="mute", latents=labels, trials_per_latent=3, prior=PRIOR)
    assert log.status == "error"
    errors = {s.error.message for s in read_eval_log(log.location).samples or [] if s.error}
    assert all("has no strength" in message for message in errors) and errors
    assert len(subject.calls) == 16 + 2 * 4 * 4


@pytest.mark.parametrize(
    ("strength", "value", "how", "condition"),
    [
        ("0.6rms", 0.6 * NORM / 2, "0.6 of the residual's norm", "main, uncalibrated: 0.6 of"),
        ("prior", 10.0, "prior, not calibrated", "main, uncalibrated strengths"),
        (7, 7.0, "given", "main"),
    ],
)
def test_other_strengths_need_no_judge(
    subject: Subject,
    labels: str,
    tmp_path: Path,
    strength: str | float,
    value: float,
    how: str,
    condition: str,
) -> None:
    log = run(esr, tmp_path, latents=labels, trials_per_latent=1, strength=strength)
    for about in told(log):
        assert (about["strength"], about["strength_found"]) == (pytest.approx(value), how)
    assert log.eval.metadata is not None
    assert log.eval.metadata["condition"].startswith(condition)


def test_a_relative_prior_is_searched_in_units_of_the_norm(
    subject: Subject, labels: str, tmp_path: Path
) -> None:
    prior = {"prior_mean": 0.8, "prior_std": 0.4, "lower": 0, "upper": 3, "unit": "norm"}
    args = {"latents": labels, "trials_per_latent": 1, "prior": {**prior, "samples_per_round": 4}}
    for about in told(run(esr, tmp_path, **args)):
        assert about["strength"] == pytest.approx(TRUE_STRENGTH[about["latent"]], rel=0.25)


def test_a_sweep_finds_its_strengths_in_the_run_and_again_the_same(
    subject: Subject, labels: str, tmp_path: Path
) -> None:
    args = {"latents": labels, "n_latents": 2, "levels": 4, "trials_per_latent": 1, "prior": PRIOR}
    first, second = (run(boost_sweep, tmp_path, span_sd=2.5, **args) for _ in range(2))
    strengths = {sample.id: sample.metadata["strength"] for sample in first.samples or []}
    assert len(set(strengths.values())) >= 3
    again = {sample.id: sample.metadata["strength"] for sample in second.samples or []}
    assert again == pytest.approx(strengths)
    assert [len(log.plan.steps) for log in (first, second)] == [2, 1]


def test_a_run_is_judged_again_where_it_asks_for_it(
    subject: Subject, labels: str, tmp_path: Path
) -> None:
    shared = {"latents": labels, "trials_per_latent": 2, "prior": PRIOR, "rejudge": 1}
    log = run(esr, tmp_path, **shared, strength=10)
    assert told(log)
    for sample in log.samples or []:
        score = (sample.scores or {})["reliability"]
        assert isinstance(score.value, dict) and score.value["rejudged"] == 1
        assert score.metadata and score.metadata["first_from_log"]
    sweep = {"n_latents": 2, "levels": 2} | shared
    assert told(run(boost_sweep, tmp_path, **sweep))


def test_every_latents_first_trial_comes_before_the_second_ones() -> None:
    counted = [dataset.Latent(index=number, label="") for number in range(3)]
    open_trials = dataset.draw_trials(counted, {}, dataset.prompts(), 2, 0, "steered", True)
    turns = dataset.by_turns(open_trials, 2)
    assert [one.trial.latent for one in turns] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "damage", ["{", '{"layer": 1, "norm": Infinity, "tokens": 5}', "[]", "\x00"]
)
def test_a_damaged_measure_of_the_residual_is_told_and_made_anew(
    subject: Subject,
    labels: str,
    tmp_path: Path,
    cache: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = {"latents": labels, "trials_per_latent": 1, "strength": "0.5rms"}
    run(esr, tmp_path, **args)
    [kept] = (cache.parent / "residuals").iterdir()
    kept.write_text(damage)
    again = run(esr, tmp_path, **args)
    assert [about["strength"] for about in told(again)] == pytest.approx([0.5 * NORM / 2] * 2)
    assert "is damaged" in caplog.text
    assert kept.read_text() != damage


def test_a_residual_that_is_no_number_is_told_once_for_all_trials(
    subject: Subject, labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulation.NORM", float("nan"))
    log = run(esr, tmp_path, latents=labels, trials_per_latent=3, strength="0.5rms")
    errors = {s.error.message for s in read_eval_log(log.location).samples or [] if s.error}
    assert len(errors) == 1 and "is no number in bfloat16" in errors.pop()
    assert len(subject.calls) == 16
