"""A new log against a stored one: planted drops found, noise left alone, unlike logs refused."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clustered import propensities
from evals import embedded
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalSpec,
    read_eval_log,
    write_eval_log,
)
from scipy.stats import ttest_1samp
from scoring import grader, run, trial, verdict
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.logs.conditions import Condition, read_condition
from esr_eval.logs.stored import StoredLog
from esr_eval.report.changes import METRICS
from esr_eval.report.regression import NotComparableError, compare_logs, read_logs, read_metrics
from esr_eval.stats.means import clustered_mean

BASELINE = Path(__file__).resolve().parent.parent / "logs" / "baseline"
PLAIN = "Find a common denominator, then add the numerators."
EITHER, _ = read_metrics(["all=either"], [])
SCORES = {"first_score": METRICS["first_score"]}


def measured(values, latents, trials, first_latent=0, name="one", strength=1.0, **header):
    """A log with these values of its metrics, (latents, trials) arrays; NaN is undefined."""
    rows = latents * trials
    about = {
        "latent": np.repeat(np.arange(first_latent, first_latent + latents), trials),
        "topic": [f"topic {n}" for _ in range(latents) for n in range(trials)],
        "seed": np.tile(np.arange(trials), latents),
        "epoch": 1,
        "level": 0.0,
        "vector": None,
        "strength": strength,
        "error": False,
        "errored": 0.0,
    }
    frame = pd.DataFrame(about | {metric: array.ravel() for metric, array in values.items()})
    log = StoredLog("log.eval", header_of(rows, **header), [], None, "")
    return Condition(log, "attempts", log.judge, name, frame, None)


def header_of(planned, status="success", **about):
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="esr",
        dataset=EvalDataset(samples=planned),
        model="none/none",
        config=EvalConfig(),
        metadata=about,
    )
    return EvalLog(status=status, eval=spec)


def with_header(condition, planned=8, **header):
    return replace(condition, log=replace(condition.log, header=header_of(planned, **header)))


def simulated(rng, latents, trials, truth, rates, drop=0.0):
    """All metrics of one condition: latents differ in what they do, `drop` lowers first scores."""
    shape = (latents, trials)
    hits = {name: rng.random(shape) < truth[name][:, None] for name in rates}
    scores = np.clip(rng.normal(truth["level"][:, None] - drop, 20, shape), 0, 100).round()
    return {
        "multi_attempt": hits["multi_attempt"].astype(float),
        "esr": (hits["multi_attempt"] & (rng.random(shape) < 0.6)).astype(float),
        "first_score": scores,
        "degraded": hits["degraded"].astype(float),
        "unscored": hits["unscored"].astype(float),
        "errored": np.zeros(shape),
    }


RATES = {"multi_attempt": 0.08, "degraded": 0.05, "unscored": 0.02}


def draw(rng, latents, rates=RATES):
    truth = {name: propensities(rng, latents, rate, 0.1) for name, rate in rates.items()}
    return truth | {"level": rng.normal(35, 12, latents)}


def compared(base, new, **more):
    return compare_logs({"one": base}, {"one": new}, resamples=9, **more)


def verdicts(found):
    return {change.metric: change.verdict for change in found.changes}


# --- statistics ---


@pytest.fixture
def frozen():
    """Collecting garbage, as statsmodels does in every correction, is then quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("latents", "trials", "paired"), [(100, 5, True), (8, 3, True), (60, 5, False)]
)
def test_no_change_is_rarely_called_one(latents, trials, paired, frozen):
    rng = np.random.default_rng(60)
    alarms = 0
    for _ in range(300):
        truth = draw(rng, latents)
        base = measured(simulated(rng, latents, trials, truth, RATES), latents, trials)
        other = truth if paired else draw(rng, latents)
        new = measured(
            simulated(rng, latents, trials, other, RATES),
            latents,
            trials,
            first_latent=0 if paired else 1000,
        )
        found = compared(base, new, metrics=EITHER)
        assert all(change.paired == paired for change in found.changes)
        alarms += found.regressed
    assert alarms <= 15


def test_planted_drops_are_found_and_only_they():
    rng = np.random.default_rng(61)
    truth = draw(rng, 200)
    base = measured(simulated(rng, 200, 5, truth, RATES), 200, 5)
    fewer = truth | {"multi_attempt": truth["multi_attempt"] * 0.3}
    new = measured(simulated(rng, 200, 5, fewer, RATES, drop=6), 200, 5)
    assert compared(base, base).regressed is False
    said = verdicts(compared(base, new))
    wrong = {metric for metric, verdict in said.items() if verdict == "REGRESSION"}
    assert wrong == {"multi_attempt", "esr", "first_score"}
    # The same change the other way round is a change, and none for the worse.
    back = verdicts(compared(new, base))
    assert {back[metric] for metric in wrong} == {"changed"}
    assert not compared(new, base).regressed
    assert compared(new, base, metrics=EITHER).regressed


def test_more_trials_that_fail_or_go_unscored_are_worse():
    rng = np.random.default_rng(62)
    truth = draw(rng, 100)
    values = simulated(rng, 100, 5, truth, RATES)
    base = measured(values, 100, 5)
    more = values | {"unscored": (rng.random((100, 5)) < 0.12).astype(float)}
    assert verdicts(compared(base, measured(more, 100, 5)))["unscored"] == "REGRESSION"
    failed = (rng.random((100, 5)) < 0.05).astype(float)
    found = compared(base, measured(values | {"errored": failed}, 100, 5))
    assert verdicts(found)["errored"] == "REGRESSION"
    assert any("came to an end; 500 were due" in problem for problem in found.problems)


def test_scores_are_tested_by_the_clustered_t_test():
    rng = np.random.default_rng(63)
    before, after = rng.normal(50, 10, (2, 30, 4))
    after += rng.normal(2, 8, (30, 1))
    new, base = measured({"first_score": after}, 30, 4), measured({"first_score": before}, 30, 4)
    [change] = compared(base, new, metrics=SCORES, level=0.9).changes
    latents = [int(latent) for latent in np.repeat(np.arange(30), 4)]
    mean, low, high = clustered_mean((after - before).ravel().tolist(), latents, 0.9)
    assert change.difference.value == pytest.approx(mean)
    assert (change.difference.low, change.difference.high) == pytest.approx((low, high))
    # Of equal clusters it is the t test of their means.
    by_latent = ttest_1samp((after - before).mean(1), 0)
    assert change.p_value == pytest.approx(by_latent.pvalue)


def test_a_shift_of_every_score_alike_is_seen():
    scores = np.tile([20.0, 40.0, 60.0], (10, 1))
    found = compared(
        measured({"first_score": scores}, 10, 3),
        measured({"first_score": scores - 5}, 10, 3),
        metrics=SCORES,
    )
    assert verdicts(found) == {"first_score": "REGRESSION"}
    assert found.changes[0].p_value == 2**-9


def test_small_changes_are_no_regression_and_one_latent_tells_nothing():
    scores = np.random.default_rng(64).normal(50, 5, (50, 4))
    base = measured({"first_score": scores}, 50, 4)
    less = measured({"first_score": scores - 1 - 0.1 * scores[:, :1] / 50}, 50, 4)
    assert verdicts(compared(base, less, metrics=SCORES)) == {
        "first_score": "changed, below margin"
    }
    metrics, _ = read_metrics([], ["first_score=0.5"])
    smaller = {name: metrics[name] for name in SCORES}
    assert verdicts(compared(base, less, metrics=smaller)) == {"first_score": "REGRESSION"}
    one = measured({"first_score": scores[:1]}, 1, 4)
    lower = measured({"first_score": scores[:1] - 30}, 1, 4)
    assert verdicts(compared(one, lower, metrics=SCORES)) == {"first_score": "cannot be told"}
    # Nor do two single trials of two latents.
    single = measured({"first_score": np.array([60.0])}, 1, 1)
    other = measured({"first_score": np.array([20.0])}, 1, 1, first_latent=5)
    assert verdicts(compared(single, other, metrics=SCORES)) == {"first_score": "cannot be told"}


def test_metrics_that_are_gone_are_worse():
    scores = np.full((4, 2), 50.0)
    base = measured({"first_score": scores, "unscored": scores * 0}, 4, 2)
    new = measured({"first_score": scores * np.nan, "unscored": scores * 0}, 4, 2)
    found = compared(base, new)
    assert found.problems == ["one: no trial has a value of first_score any more"]


def test_p_values_are_corrected_over_all_logs_together():
    rng = np.random.default_rng(65)
    scores = rng.normal(50, 10, (40, 3))
    logs, others = {}, {}
    for name in "abcd":
        logs[name] = measured({"first_score": scores}, 40, 3, name=name)
        moved = scores + rng.normal(0, 10, (40, 3)) - (6 if name == "a" else 0)
        others[name] = measured({"first_score": moved}, 40, 3, name=name)
    found = compare_logs(logs, others, metrics=SCORES)
    assert found.changes[0].corrected == pytest.approx(4 * found.changes[0].p_value)
    assert [change.verdict == "REGRESSION" for change in found.changes] == [True] + [False] * 3
    del others["d"]
    found = compare_logs(logs, others)
    assert found.problems == ["d: there is no new log"] and found.regressed


# --- what is not comparable ---


def test_other_settings_give_no_verdict():
    scores = {"first_score": np.full((4, 2), 50.0)}
    settings = {"judge": "a", "runtime": {"layer": 1}}
    base = measured(scores, 4, 2, **settings)
    other = measured(scores, 4, 2, **settings | {"judge": "b"})
    with pytest.raises(NotComparableError, match="judge a and b"):
        compared(base, other)
    found = compared(base, other, allow_differences=True)
    assert found.notes == ["one: judge a and b"] and not found.regressed
    stronger = measured(scores, 4, 2, strength=2.0, **settings)
    with pytest.raises(NotComparableError, match="other boosts in 8 of 8 trials"):
        compared(base, stronger)
    with pytest.raises(NotComparableError, match="8 and 6 trials"):
        compared(base, with_header(base, planned=6, **settings))
    with pytest.raises(NotComparableError, match="its run has the status error"):
        compared(with_header(base, status="error", **settings), base, allow_differences=True)
    assert compared(base, with_header(base, status="cancelled", **settings)).problems
    with pytest.raises(NotComparableError, match="No log measures"):
        compare_logs({"a": base, "b": base}, {"c": base})
    elsewhere = measured(scores, 4, 2, first_latent=2, **settings)
    assert compared(base, elsewhere).notes == ["one: 4 of 8 trials are not the base's"]
    with pytest.raises(NotComparableError, match="4 of 8 trials are not the base's"):
        compared(base, elsewhere, same_trials=True)
    with pytest.raises(NotComparableError, match="between 0 and 1"):
        compared(base, base, level=95)


@pytest.mark.parametrize(
    ("worse", "margins", "said"),
    [
        (["first=up"], [], "not of the form METRIC=VALUE"),
        (["esr=sideways"], [], "takes up, down, either, neither"),
        ([], ["esr=much"], "a margin is a number"),
        ([], ["esr=nan"], "a margin is a number"),
        ([], ["esr"], "not of the form"),
    ],
)
def test_directions_and_margins_are_checked(worse, margins, said):
    with pytest.raises(NotComparableError, match=said):
        read_metrics(worse, margins)
    assert read_metrics(["esr=up"], ["completed=0.5"]) == (
        METRICS | {"esr": METRICS["esr"]._replace(worse="up")},
        0.5,
    )


# --- real logs, and the command ---


def command(*args):
    result = CliRunner().invoke(app, ["compare", *map(str, args)], env={"COLUMNS": "160"})
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def judged(tmp_path, score, count=6, **task):
    """A real log of this project's scorer: its judge gives `score` and a bit of noise."""

    def answer(*_):
        return verdict((PLAIN[:9], PLAIN[-9:], score))

    samples = [trial(PLAIN, i % 3, identifier=i, seed=i) for i in range(count)]
    return run(samples, grader(answer), tmp_path, **task).location.removeprefix("file://")


def test_the_baseline_equals_itself_and_its_halves_differ():
    logs = read_logs(BASELINE)
    assert sorted(logs) == ["smollm2-135m, main", "smollm2-135m, no_steering"]
    assert {log.completed for log in logs.values()} == {24}
    status, said = command(BASELINE, BASELINE, "--worse", "all=either")
    assert status == 0 and "REGRESSION" not in said
    steered, unsteered = (logs[name].log.path for name in sorted(logs))
    status, said = command(unsteered, steered)
    assert status == 2 and "does not measure what" in said
    status, said = command(unsteered, steered, "--allow-differences")
    assert status == 1
    assert "REGRESSION" in next(line for line in said.splitlines() if "first_score" in line)
    status, said = command(steered, unsteered, "--allow-differences")
    assert status == 0
    assert "changed" in next(line for line in said.splitlines() if "first_score" in line)


def test_the_baseline_names_no_machine():
    for log in BASELINE.glob("*.eval"):
        assert log.stat().st_size < 200_000
        header = read_eval_log(str(log), header_only=True).model_dump_json()
        assert "/home/" not in header and "/root" not in header and "file:" not in header


def test_a_worse_judgement_another_judge_and_a_broken_run(tmp_path):
    base = judged(tmp_path, 80)
    assert command(base, judged(tmp_path, 80))[0] == 0
    status, said = command(base, judged(tmp_path, 60), "--level", "0.7")
    assert status == 1 and "REGRESSION" in said
    other = read_eval_log(base)
    for sample in other.samples:
        sample.scores["attempts"].metadata["judge"] = "another/judge"
    write_eval_log(other, str(tmp_path / "other.eval"))
    status, said = command(base, tmp_path / "other.eval")
    assert status == 2 and "judge mockllm/grader and another/judge" in said
    broken = read_eval_log(base)
    broken.status, broken.samples, broken.results = "error", broken.samples[:3], None
    write_eval_log(broken, str(tmp_path / "broken.eval"))
    status, said = command(base, tmp_path / "broken.eval")
    assert status == 1
    assert "status is error" in said and "3 trials came to an end; 6 were due" in said
    assert command(tmp_path / "broken.eval", base)[0] == 2


def test_what_is_no_log_gives_no_verdict(tmp_path):
    assert command(tmp_path / "none.eval", tmp_path)[0] == 2
    (tmp_path / "broken.eval").write_text("not a log")
    assert command(tmp_path / "broken.eval", tmp_path / "broken.eval")[0] == 2
    with pytest.raises(NotComparableError, match="There is no log in"):
        (tmp_path / "empty").mkdir()
        read_logs(tmp_path / "empty")
    base = judged(tmp_path / "twice", 80)
    shutil.copy(base, Path(base).with_name("2030-01-01T00-00-00-00-00_task_copy.eval"))
    told: list[str] = []
    assert len(read_logs(tmp_path / "twice", told.append)) == 1
    assert len(told) == 1 and "is a copy of" in told[0]
    judged(tmp_path / "twice", 80)
    with pytest.raises(NotComparableError, match="has several logs of"):
        read_logs(tmp_path / "twice")


@pytest.mark.model
def test_a_boost_that_reaches_the_model_by_half_is_found(tmp_path, monkeypatch):
    """Code that breaks steering while every setting in the log says the same."""
    from esr_eval.sae.sparse import SparseSAE

    whole_row = SparseSAE.decoder_row
    args = {"n_latents": 10, "trials_per_latent": 2, "seed": 11, "max_tokens": 48}
    whole = embedded("esr", tmp_path / "base", **args)
    monkeypatch.setattr(SparseSAE, "decoder_row", lambda sae, latent: whole_row(sae, latent) / 2)
    half = embedded("esr", tmp_path / "new", **args)
    base, new = (read_condition(log.location) for log in (whole, half))
    assert base.settings == new.settings and base.by_trial("strength") == new.by_trial("strength")
    assert verdicts(compared(base, new, metrics=EITHER))["first_score"] == "REGRESSION"
