"""Detectors held at 0, and random latents in their place: planted effects, and the real subject."""

import json

import numpy as np
import pytest
from detection import DEAD, DETECTORS, MODEL, RATES, install
from inspect_ai import eval as inspect_eval

from esr_eval._util.cache import CACHE_ENV
from esr_eval.dataset import prompts
from esr_eval.detectors.matching import draw_matched
from esr_eval.errors import EsrError
from esr_eval.logs.runs import shared_trials
from esr_eval.logs.values import read_values
from esr_eval.spec import Boost, Clamp, Steering
from esr_eval.stats.comparisons import compare_pairs

BOOSTED = range(1, 13)
TOPICS = [prompt.topic for prompt in prompts("detector_discovery")[:8]]

# Random sets


def often(latents):
    return np.log(RATES[list(latents)])


def test_random_sets_fire_as_often_as_the_detectors():
    random = np.random.default_rng(0)
    # Detectors that fire seldom: a uniform draw would fire ten times as often.
    seldom = np.argsort(RATES)[1000:9000]
    detectors = [int(i) for i in random.choice(seldom, 26, replace=False)]
    for draw in range(3):
        drawn = draw_matched(RATES, detectors, (), draw, seed=0)
        np.testing.assert_allclose(often(drawn), often(detectors), atol=0.02)
    uniform = random.choice(len(RATES), 26)
    assert abs(often(uniform).mean() - often(detectors).mean()) > 1


def test_random_sets_hold_no_detector_no_boosted_and_no_dead_latent():
    random = np.random.default_rng(1)
    rates = RATES[:400].copy()
    dead, detectors, boosted = (set(range(i, i + 60)) for i in (0, 60, 120))
    rates[list(dead)] = 0
    taken: set[int] = set()
    for draw in range(3):
        drawn = draw_matched(rates, sorted(detectors), boosted, draw, seed=int(random.integers(9)))
        assert len(set(drawn)) == 60
        assert not set(drawn) & (dead | detectors | boosted)
    for draw in range(3):
        drawn = draw_matched(rates, sorted(detectors), boosted, draw, seed=5)
        assert drawn == draw_matched(rates, sorted(detectors), boosted, draw, seed=5)
        assert not taken & set(drawn), "sets of different draws share no latent"
        taken |= set(drawn)
    assert draw_matched(rates, [61, 62], (), 0, 1) != draw_matched(rates, [61, 62], (), 0, 2)
    with pytest.raises(EsrError, match="too few for 4 sets of 60"):
        draw_matched(rates, sorted(detectors), boosted, 3, seed=5)
    with pytest.raises(EsrError, match="numbered from 0"):
        draw_matched(rates, sorted(detectors), boosted, -1, seed=5)


def test_a_detector_that_never_fired_is_matched_among_the_rarest():
    rates = np.linspace(0, 0.5, 1001)
    drawn = draw_matched(rates, [0], (), 0, seed=0)
    assert 1 <= drawn[0] <= 20


# Planted effects


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The stand-in subject, its discovery log and its main log."""
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    subject = install(monkeypatch)
    labels = tmp_path / "labels.csv"
    lines = [f"{latent},concept {latent}" for latent in BOOSTED]
    labels.write_text("\n".join(["index_in_sae,label", *lines]))
    discovery = run(tmp_path, "detectors", answers_per_task=2, topics=TOPICS)
    main = run(tmp_path, "esr", latents=str(labels), strength=1.0, trials_per_latent=5)
    return subject, discovery, main


def run(tmp_path, task, model=MODEL, **task_args):
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model=model,
        model_roles={"grader": "sim-judge/noisy"},
        task_args=task_args,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success"
    return log


def multi(before, after):
    """Several attempts before and after, on the same trials."""
    return compare_pairs(
        *shared_trials(read_values(before.location), read_values(after.location)), resamples=500
    )


def test_ablation_of_a_needed_latent_lowers_the_rate_and_random_sets_do_not(planted, tmp_path):
    subject, discovery, main = planted
    subject.clamped.clear()
    ablated = run(tmp_path, "ablation", detectors=discovery.location, replay=main.location)
    assert set(subject.clamped) == {frozenset(DETECTORS)}
    drop = multi(main, ablated)
    assert drop.first.trials == drop.second.trials == 60
    assert 0.3 < drop.first.estimate.value < 0.7
    assert drop.second.estimate.value == 0
    assert drop.difference.high < 0 and drop.p_value < 0.01
    assert ablated.eval.metadata["experiment_id"] == "ablation"
    assert ablated.eval.metadata["condition"] == "ablated: silent_4"
    assert ablated.eval.metadata["ablation"]["latents"] == sorted(DETECTORS)
    assert ablated.eval.metadata["detectors"]["eval_id"] == discovery.eval.eval_id

    taken: set[int] = set()
    for draw in range(3):
        subject.clamped.clear()
        control = run(
            tmp_path,
            "random_ablation",
            detectors=discovery.location,
            discovery=discovery.location,
            replay=main.location,
            draw=draw,
        )
        about = control.eval.metadata["random_set"]
        [clamped] = set(subject.clamped)
        assert set(about["drawn"]) == clamped and len(clamped) == len(DETECTORS)
        assert about["detectors"] == sorted(DETECTORS)
        assert not clamped & (set(DETECTORS) | set(BOOSTED) | set(DEAD) | taken)
        taken |= clamped
        assert control.eval.metadata["condition"] == f"random set {draw + 1}"
        np.testing.assert_allclose(
            np.log(about["drawn_rates"]), np.log(about["detector_rates"]), atol=0.1
        )
        same = multi(main, control)
        assert same.only_first == same.only_second == 0


def test_ablation_without_the_boost_and_at_the_feature_layer(planted, tmp_path):
    _, discovery, main = planted
    args = {"detectors": discovery.location, "replay": main.location, "layer": "feature"}
    log = run(tmp_path, "ablation", **args)
    assert log.eval.metadata["condition"] == "ablated: silent_4, at the feature layer"
    with pytest.raises(
        EsrError, match="-T layer=last is refused: it should be 'steering' or 'feature'"
    ):
        run(tmp_path, "ablation", **args | {"layer": "last"})
    log = run(tmp_path, "ablation", "esr/llama-70b", **args | {"detectors": "paper_26"})
    assert log.eval.metadata["ablation"]["layer"] == 50
    for sample in log.samples:
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        edits = Steering.from_extra_body(event.config.extra_body).edits
        assert [(e.layer, e.value) for e in edits if isinstance(e, Clamp)] == [(50, 0.0)] * 26
        assert [e.layer for e in edits if isinstance(e, Boost)] == [33]


def test_what_cannot_be_ablated_is_one_sentence(planted, tmp_path):
    _, discovery, main = planted
    with pytest.raises(EsrError, match="out of range"):
        run(tmp_path, "ablation", detectors=65_536, replay=main.location)
    with pytest.raises(EsrError, match="no log of esr_eval/detectors"):
        run(
            tmp_path,
            "random_ablation",
            detectors=discovery.location,
            discovery=main.location,
            replay=main.location,
        )
    with pytest.raises(EsrError, match="carries no ESR trial"):
        run(tmp_path, "ablation", detectors=7, replay=discovery.location)


# The real subject


@pytest.mark.model
def test_ablation_on_the_embedded_subject(tmp_path):
    def go(task, **task_args):
        [log] = inspect_eval(
            f"esr_eval/{task}",
            model="esr/smollm2-135m",
            model_args={"device": "cpu"},
            task_args=task_args,
            max_tokens=24,
            log_dir=str(tmp_path),
            display="none",
        )
        assert log.status == "success"
        return log

    discovery = go("detectors", answers_per_task=1, topics=TOPICS[:4])
    main = go("esr", n_latents=2, trials_per_latent=1, seed=3)
    args = {"detectors": discovery.location, "replay": main.location, "rule": "separability"}
    ablated = go("ablation", **args)
    control = go("random_ablation", **args, discovery=discovery.location)
    alone = go("ablation", **args, steering=False)
    detectors = ablated.eval.metadata["ablation"]["latents"]
    drawn = control.eval.metadata["ablation"]["latents"]
    assert len(detectors) == len(drawn) == 25 and not set(detectors) & set(drawn)
    before = {sample.id: sample for sample in main.samples}
    for log, latents in [(ablated, detectors), (control, drawn), (alone, detectors)]:
        assert json.loads(json.dumps(log.eval.metadata))["replay"]["eval_id"] == main.eval.eval_id
        for sample in log.samples:
            [event] = [
                e for e in sample.events if e.event == "model" and e.model.startswith("esr/")
            ]
            edits = Steering.from_extra_body(event.config.extra_body).edits
            clamps = [e for e in edits if isinstance(e, Clamp)]
            boosts = [e for e in edits if isinstance(e, Boost)]
            assert [e.latent for e in clamps] == latents
            assert {(e.layer, e.value, e.positions) for e in clamps} == {(14, 0.0, "all")}
            assert len(boosts) == (0 if log is alone else 1)
            assert sample.input == before[sample.id].input
            usage, cut = sample.output.usage, sample.output.stop_reason == "max_tokens"
            # Every position but the first (skip_first) and the last token if it was never fed.
            done = sample.output.metadata
            assert done["edited_positions"] + done["held_positions"] == usage.total_tokens - 1 - cut
            # Under a boost every position changes; alone, clamps find many latents silent.
            assert (done["held_positions"] > 0) == (log is alone)
    answers = [{s.id: s.output.completion for s in log.samples} for log in (main, ablated)]
    assert answers[0] != answers[1], "the clamps reach what is generated"
