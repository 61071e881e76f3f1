import json
from dataclasses import replace

import numpy as np
import pytest
from clustered import alike_propensities, propensities
from inspect_ai.log import EvalLog, write_eval_log
from scipy.stats import norm
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import TrialKey
from esr_eval.report.recovery import visible_table
from esr_eval.report.summary import observed_clustering, observed_pair_clustering
from esr_eval.stats.comparisons import pooled_t_test, sign_flip_test
from esr_eval.stats.means import mean_difference
from esr_eval.stats.power import (
    Design,
    PairedScores,
    design_effect,
    latents_for_difference,
    latents_needed,
    least_change,
    least_difference,
    power,
    score_power,
)

pytestmark = pytest.mark.filterwarnings(
    "error",
    # Streams of other tests that the collector finds while these run.
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

SETS = 1000
PUBLISHED = (0.074, 0.055)


@pytest.fixture
def invoke(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        return CliRunner().invoke(app, ["power", *map(str, arguments)])

    return run


@pytest.mark.parametrize(("latents", "trials"), [(500, 10), (300, 10), (300, 5)])
@pytest.mark.parametrize("copula", [1.0, 0.8])
def test_power_of_replayed_pairs_is_what_simulation_finds(latents, trials, copula):
    rng = np.random.default_rng(60)
    before, after = alike_propensities(rng, (SETS, latents), PUBLISHED, 0.1, copula)
    alike = np.corrcoef(before.ravel(), after.ravel())[0, 1]
    gained = rng.binomial(trials, after) - rng.binomial(trials, before)
    found = np.mean(np.array([sign_flip_test(one) for one in gained]) < 0.05)
    design = Design(*PUBLISHED, 0.1, trials, latent_correlation=alike)
    # Three standard errors of the simulated power.
    assert power(design, latents * trials) == pytest.approx(found, abs=0.045)


@pytest.mark.parametrize(("latents", "trials", "icc"), [(500, 10, 0.1), (250, 5, 0.2)])
def test_power_with_latents_of_its_own_is_what_simulation_finds(latents, trials, icc):
    rng = np.random.default_rng(61)
    hits, hits_after = (
        rng.binomial(trials, propensities(rng, (SETS, latents), rate, icc)) for rate in PUBLISHED
    )
    none, some = np.zeros(latents), np.full(latents, float(trials))
    first, second = np.concatenate((some, none)), np.concatenate((none, some))
    found = [
        pooled_t_test(np.concatenate((a, none)), first, np.concatenate((none, b)), second)
        for a, b in zip(hits, hits_after, strict=True)
    ]
    design = Design(*PUBLISHED, icc, trials, paired=False)
    assert power(design, latents * trials) == pytest.approx(
        np.mean(np.array(found) < 0.05), abs=0.045
    )


def test_by_hand():
    design = Design(0.5, 0.4, icc=0.1, trials_per_latent=11, paired=False)
    # 1 + (11 - 1) * 0.1.
    assert design_effect(design) == pytest.approx(2)
    null, alternative = 2 * np.sqrt(0.45 * 0.55), np.sqrt(2 * (0.25 + 0.24))
    needed = ((1.959964 * null + 0.841621 * alternative) / 0.1) ** 2
    assert latents_needed(design) == np.ceil(needed / 11)
    chance = norm.cdf((0.1 * np.sqrt(900) - 1.959964 * null) / alternative)
    assert power(design, 900) == pytest.approx(chance, abs=1e-6)
    # All that latents have in common drops out: 1 - ICC is left.
    pairs = Design(0.5, 0.4999, icc=0.1, trials_per_latent=11, latent_correlation=1)
    assert design_effect(pairs) == pytest.approx(0.9, abs=1e-3)


def test_needs_and_power_agree():
    for paired in (True, False):
        design = Design(*PUBLISHED, trials_per_latent=7, paired=paired)
        needed = latents_needed(design, 0.9, 0.01)
        assert power(design, 7 * needed, 0.01) >= 0.9 > power(design, 7 * (needed - 1), 0.01)


def test_clustering_costs_trials_and_pairing_saves_some():
    def needed(icc, paired):
        return latents_needed(Design(*PUBLISHED, icc, 10, paired))

    assert needed(0, True) == needed(0, False) < needed(0.1, True) < needed(0.1, False)
    assert needed(0.1, False) < needed(0.2, False)


def test_the_least_change_that_is_seen_has_that_power():
    design = Design(0.2, 0.1, icc=0.1, trials_per_latent=4)
    for rise in (False, True):
        rate = least_change(design, 60, rise)
        assert (rate > 0.2) == rise
        assert power(replace(design, reduced=rate), 240) == pytest.approx(0.8, abs=0.005)
    # More latents see smaller changes, and from a rate that is low enough no fall is seen.
    assert least_change(design, 600) > least_change(design, 60)
    assert least_change(replace(design, base=0.02), 12) is None
    assert least_change(replace(design, base=0.02), 12, rise=True) > 0.05


def paired_scores(rng, shape, deviation, icc):
    """Differences of pairs, (sets, latents, trials), as spread and clustered."""
    shared = rng.normal(0, deviation * np.sqrt(icc), (*shape[:-1], 1))
    return shared + rng.normal(0, deviation * np.sqrt(1 - icc), shape)


@pytest.mark.parametrize(("latents", "trials", "icc"), [(12, 4, 0.3), (40, 3, 0.1)])
def test_power_of_paired_scores_is_what_simulation_finds(latents, trials, icc):
    rng = np.random.default_rng(64)
    design = PairedScores(30, icc, trials)
    visible = least_difference(design, latents)
    assert score_power(design, visible, latents) == pytest.approx(0.8, abs=1e-6)
    names = np.repeat(np.arange(latents), trials).tolist()
    made = paired_scores(rng, (SETS, latents, trials), 30, icc) + visible
    found = [mean_difference(one.ravel(), names).p_value < 0.05 for one in made]
    assert np.mean(found) == pytest.approx(0.8, abs=0.045)


def test_spread_and_clustering_of_paired_scores_are_estimated():
    rng = np.random.default_rng(65)
    made = paired_scores(rng, (3000, 5), 20, 0.25)
    names = np.repeat(np.arange(3000), 5).tolist()
    found = PairedScores.of(made.ravel(), names)
    assert found.deviation == pytest.approx(20, abs=0.6)
    assert found.icc == pytest.approx(0.25, abs=0.03)
    assert found.trials_per_latent == 5
    assert PairedScores.of(np.array([1.0, 2.0]), [7, 7]) is None
    assert PairedScores.of(np.array([3.0, 3.0]), [7, 8]) is None
    # One pair of each latent: of clustering nothing is known.
    assert PairedScores.of(np.array([1.0, 2.0, 4.0]), [1, 2, 3]).icc == 0


def test_needs_and_power_of_paired_scores_agree():
    design = PairedScores(30, 0.2, 4)
    needed = latents_for_difference(design, 5, 0.9, 0.01)
    assert score_power(design, 5, needed, 0.01) >= 0.9 > score_power(design, 5, needed - 1, 0.01)
    assert least_difference(design, needed, 0.9, 0.01) <= 5
    # By hand: a latent's mean of one pair spreads by the deviation itself.
    assert PairedScores(30, 0.5, 1).of_a_latent == 30
    assert PairedScores(30, 1 / 3, 4).of_a_latent == pytest.approx(30 * np.sqrt(2 / 4))
    for wrong in ({"deviation": 0}, {"icc": 1}, {"trials_per_latent": 0}):
        with pytest.raises(EsrError):
            PairedScores(**({"deviation": 30} | wrong))
    with pytest.raises(EsrError, match="two of them"):
        least_difference(design, 1)


def test_command_for_paired_scores(invoke):
    args = ["--scores", "--sd", 30, "--icc", 0.1, "--trials-per-latent", 4]
    result = invoke(*args, "--latents", 33, "--difference", 5)
    assert result.exit_code == 0, result.output
    design = PairedScores(30, 0.1, 4)
    assert f"{least_difference(design, 33):.1f}" in result.output
    rows = [row[0] for row in visible_table(design, 33).rows]
    assert rows.count("33 latents") == 1 and rows == sorted(rows, key=lambda r: int(r.split()[0]))
    assert "33 latents" in result.output and "latents for 5 points" in result.output
    assert f"{latents_for_difference(design, 5):,}" in result.output
    assert "--sd POINTS, or --log twice" in invoke("--scores").stderr
    assert "add --scores" in invoke("--sd", 3).stderr
    assert "leave out --unpaired" in invoke(*args, "--unpaired").stderr
    assert "two of them" in invoke(*args, "--latents", 1).stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 0.0},
        {"reduced": 1.0},
        {"reduced": 0.074},
        {"icc": 1.0},
        {"icc": -0.1},
        {"trials_per_latent": 0},
        {"latent_correlation": 1.1},
        {"pair_correlation": 1.0},
    ],
)
def test_what_has_no_answer_is_refused(wrong):
    with pytest.raises(EsrError):
        Design(**({"base": 0.074, "reduced": 0.055} | wrong))
    with pytest.raises(EsrError):
        latents_needed(Design(*PUBLISHED), 0.04, 0.05)


def simulated_values(rng, truth, trials):
    """Values of one condition, by trial."""
    return {
        TrialKey(latent, "t", seed, 1): float(rng.random() < rate)
        for latent, rate in enumerate(truth)
        for seed in range(trials)
    }


def test_clustering_is_estimated_from_trials():
    rng = np.random.default_rng(62)
    before, after = alike_propensities(rng, 3000, (0.3, 0.2), 0.15, 0.9)
    alike = np.corrcoef(before, after)[0, 1]
    first, second = (simulated_values(rng, truth, 5) for truth in (before, after))
    assert observed_clustering(first).icc == pytest.approx(0.15, abs=0.025)
    found = observed_pair_clustering(first, second)
    assert found.icc == pytest.approx(0.15, abs=0.025)
    assert found.latent_correlation == pytest.approx(alike, abs=0.1)
    assert found.pair_correlation == pytest.approx(0.15 * alike, abs=0.03)


def test_clustering_that_cannot_be_told():
    none = {TrialKey(latent, "t", seed, 1): 0.0 for latent in range(3) for seed in range(3)}
    with pytest.raises(EsrError, match="cannot be told"):
        observed_clustering(none)
    some = none | {TrialKey(0, "t", 0, 1): 1.0}
    with pytest.raises(EsrError, match="share no trial"):
        observed_pair_clustering(some, {TrialKey(9, "t", 0, 1): 1.0})
    # Alike in everything: still something left to plan with.
    same = observed_pair_clustering(some, some)
    assert same.pair_correlation < 1
    # Estimates below 0 stand for none.
    apart = {TrialKey(latent, "t", seed, 1): float(seed) for latent in range(3) for seed in (0, 1)}
    assert observed_clustering(apart).icc == 0


def test_command_for_the_published_reduction(invoke):
    result = invoke()
    assert result.exit_code == 0
    assert "7.4 % against 5.5 %, replayed pairs" in result.output
    assert "97 % │     95 %" in result.output
    result = invoke("--unpaired")
    assert "97 % │     80 %" in result.output
    assert "2,630 │    4,990" in result.output


def test_command_refuses_plainly(invoke):
    result = invoke("--reduced", 7.4)
    assert result.exit_code == 1
    assert result.stderr == "Error: The two rates are the same: there is nothing to see.\n"
    assert "no log" in invoke("--log", "nowhere.eval").stderr
    assert "one log" in invoke(*["--log", "a.eval"] * 3).stderr


def test_command_takes_the_clustering_from_logs(invoke, tmp_path):
    rng = np.random.default_rng(63)
    rates = alike_propensities(rng, 60, (0.3, 0.2), 0.2, 0.9)
    for name, truth in zip(("base", "replay"), rates, strict=True):
        log_of(simulated_values(rng, truth, 4), tmp_path / f"{name}.eval")
    result = invoke("--log", tmp_path / "base.eval")
    assert result.exit_code == 0, result.output
    assert "icc of the log: 0." in result.output
    result = invoke("--log", tmp_path / "base.eval", "--log", tmp_path / "replay.eval")
    assert result.exit_code == 0, result.output
    assert "pair correlation of the logs: 0." in result.output
    result = invoke("--log", tmp_path / "base.eval", "--metric", "esr")
    assert result.exit_code == 1
    assert "no trial with a value of esr" in result.stderr


def about_trial(latent, topic, seed):
    about = {"condition": "steered", "label": "x", "strength": 1.0}
    return about | {"latent": latent, "topic": topic, "seed": seed}


def log_of(values, path):
    """A small log with these multi-attempt values; one trial more has none."""
    samples = [
        {
            "id": f"{key.latent}-{key.seed}",
            "epoch": key.epoch,
            "input": "task",
            "target": "",
            "metadata": about_trial(key.latent, key.topic, key.seed),
            "scores": {"attempts": {"value": {"multi_attempt": value}}},
        }
        for key, value in values.items()
    ]
    failed = about_trial(0, "t", len(values))
    samples.append({"id": "failed", "epoch": 1, "input": "task", "target": "", "metadata": failed})
    about = {
        "created": "2026-01-01T00:00:00+00:00",
        "task": "esr",
        "dataset": {},
        "model": "none/none",
        "config": {},
    }
    log = EvalLog.model_validate_json(
        json.dumps({"status": "success", "eval": about, "samples": samples})
    )
    write_eval_log(log, str(path))
