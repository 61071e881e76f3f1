"""Off-topic detectors: planted ones found, none in noise, sets loaded, and the real subject."""

import json

import numpy as np
import pytest
from detection import DETECTORS, MODEL, install
from inspect_ai import Task, eval_retry
from inspect_ai import eval as inspect_eval
from scipy.stats import mannwhitneyu
from typer.testing import CliRunner

from esr_eval._util.paths import CACHE_ENV
from esr_eval.cli import app
from esr_eval.dataset import prompts
from esr_eval.detectors.choice import load_detectors, published_sets
from esr_eval.detectors.discovery import (
    find_detectors,
    read_detector_file,
    read_discovery,
    write_detector_file,
)
from esr_eval.detectors.pairs import derangement, paired_dataset, read_pairs
from esr_eval.detectors.statistics import (
    Pairs,
    latent_statistics,
    most_separable,
    nearly_silent,
    separable_by_chance,
    silent,
    silent_by_chance,
)
from esr_eval.errors import EsrError
from esr_eval.logs.sidecar import STORE_KEY, load
from esr_eval.subjects import find_subject

RUNTIME = find_subject("llama-8b").runtime()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "model" not in request.keywords:
        monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))


def pairs_of(matched, mismatched):
    rate = np.zeros(matched.shape[1])
    return Pairs(matched.astype(np.float32), mismatched.astype(np.float32), rate, rate)


def noise(random, count, latents):
    """Maxima that ignore whether task and answer fit: sparse, of all firing rates."""
    often = random.uniform(0, 1, latents)
    active = random.random((2, count, latents)) < often
    return pairs_of(*(active * random.exponential(size=active.shape)))


# Statistics


def test_auc_is_that_of_the_rank_sum_test_ties_and_dead_latents_included():
    random = np.random.default_rng(1)
    pairs = noise(random, 15, 40)
    pairs.matched_max[:, :3] = pairs.mismatched_max[:, :3] = 0
    pairs.matched_max[:, 5] = np.round(pairs.matched_max[:, 5])
    found = latent_statistics(pairs)
    for i in range(40):
        u = mannwhitneyu(pairs.mismatched_max[:, i], pairs.matched_max[:, i]).statistic
        assert found.auc[i] == pytest.approx(u / 15**2)
    np.testing.assert_array_equal(found.auc[:3], 0.5)


def test_planted_latents_are_found_by_both_rules_and_only_they():
    random = np.random.default_rng(2)
    pairs = noise(random, 20, 5000)
    silent_ones, stronger = [7, 70, 700], [11, 1100]
    pairs.matched_max[:, silent_ones] = 0
    pairs.mismatched_max[:, silent_ones] = random.uniform(1, 2, (20, 3))
    pairs.mismatched_max[:4, 700] = 0  # 16 of 20 is 80 %, and enough
    pairs.matched_max[:, stronger] = random.uniform(1, 2, (20, 2))
    pairs.mismatched_max[:, stronger] = random.uniform(3, 4, (20, 2))
    found = latent_statistics(pairs)
    assert set(silent(found, 20, 0.0, 0.8)) == set(silent_ones)
    assert set(most_separable(found, 5)) == {*silent_ones, *stronger}
    assert set(most_separable(found, 4)) == {7, 70, *stronger}
    pairs.mismatched_max[4, 700] = 0
    found = latent_statistics(pairs)
    assert set(silent(found, 20, 0.0, 0.8)) == {7, 70}
    assert nearly_silent(found, 20, 0.0, 0.8, 3)[0] == 700


def test_noise_has_no_detectors_and_as_many_as_were_expected():
    """65,536 latents that ignore the pairing: none silent, AUCs as chance says."""
    random = np.random.default_rng(3)
    pairs = noise(random, 20, 65_536)
    found = latent_statistics(pairs)
    assert len(silent(found, 20, 0.0, 0.8)) == 0
    assert silent_by_chance(pairs, 0.0, 0.8) < 0.01
    weakest = float(found.auc[most_separable(found, 25)[-1]])
    assert weakest < 0.85
    assert 15 < separable_by_chance(pairs, weakest) < 35


def test_the_number_expected_by_chance_is_what_noise_gives():
    """Few pairs and a loose rule, so that chance finds many: stated and found agree."""
    random = np.random.default_rng(4)
    expected, seen, separable = [], [], []
    for _ in range(40):
        pairs = noise(random, 5, 1000)
        found = latent_statistics(pairs)
        expected.append(silent_by_chance(pairs, 0.2, 0.8))
        seen.append(len(silent(found, 5, 0.2, 0.8)))
        reached = int((found.auc >= 0.8 - 1e-9).sum())
        separable.append(reached / separable_by_chance(pairs, 0.8, swaps=50))
    assert np.mean(expected) > 10
    assert np.mean(seen) == pytest.approx(np.mean(expected), rel=0.08)
    assert np.mean(separable) == pytest.approx(1, rel=0.15)


# Pairing


@pytest.mark.parametrize("count", [2, 3, 20, 38])
def test_a_derangement_leaves_nothing_in_place(count):
    orders = [derangement(count, str(seed)) for seed in range(30)]
    for order in orders:
        assert sorted(order) == list(range(count))
        assert all(i != j for i, j in enumerate(order))
    assert count == 2 or len({tuple(order) for order in orders}) > 1
    with pytest.raises(EsrError, match="two tasks"):
        derangement(1, "0")


def test_every_answer_stands_in_one_matched_and_one_mismatched_pair():
    asked = prompts("detector_discovery")
    samples = list(paired_dataset(asked, 3, 5, "pairs"))
    own = [(s.input, s.metadata["seed"]) for s in samples]
    other = [(s.metadata["partner_text"], s.metadata["partner_seed"]) for s in samples]
    assert len(own) == len(set(own)) == 3 * len(asked) == 60
    assert sorted(own) == sorted(other)
    assert all(s.metadata["topic"] != s.metadata["partner_topic"] for s in samples)
    assert len({s.id for s in samples}) == 60
    fewer = {(s.input, s.metadata["seed"]) for s in paired_dataset(asked[:4], 2, 5, "pairs")}
    assert fewer <= set(own)


# From the task to the file, with planted detectors


def discover(tmp_path, **task_args):
    args = {"answers_per_task": 2, "topics": [p.topic for p in prompts("detector_discovery")[:8]]}
    [log] = inspect_eval(
        "esr_eval/detectors",
        model=MODEL,
        task_args=args | task_args,
        log_dir=str(tmp_path / "logs"),
        display="none",
        retry_on_error=0,
    )
    return log


def test_the_task_finds_planted_detectors_and_writes_them_beside_the_log(tmp_path, monkeypatch):
    subject = install(monkeypatch)
    log = discover(tmp_path)
    assert log.status == "success"
    assert len(subject.asked) == len(set(subject.asked)) == 16, "every answer is made once"
    [path] = (tmp_path / "logs").glob("detectors_*.json")
    report = read_detector_file(path)
    assert report == find_detectors(log.location)
    assert report.source["eval_id"] == log.eval.eval_id
    assert (report.pairs, report.missing, report.layer) == (16, 0, 19)
    found = report.sets["silent"]
    assert {one.latent for one in found.detectors} == set(DETECTORS)
    assert all(one.auc == 1 and one.matched_active == 0 for one in found.detectors)
    assert found.expected_by_chance < 1
    assert set(DETECTORS) <= {one.latent for one in report.sets["separability"].detectors}
    for source in (str(path), log.location):
        chosen = load_detectors(source, RUNTIME)
        assert chosen.latents == tuple(sorted(DETECTORS)) and chosen.name == "silent_4"
        assert [one.latent for one in chosen.statistics] == list(chosen.latents)
    assert len(load_detectors(str(path), RUNTIME, "separability").latents) == 25


def test_counts_in_the_log_are_those_of_its_arrays(tmp_path, monkeypatch):
    install(monkeypatch)
    log = discover(tmp_path, answers_per_task=1)
    for sample in log.samples:
        arrays = load(sample.store[STORE_KEY], log.location)
        matched, mismatched = (arrays[f"{which}_max"] > 0 for which in ("matched", "mismatched"))
        value = sample.scores["activity"].value
        assert value["active_matched"] == matched.sum()
        assert value["only_mismatched"] == (mismatched & ~matched).sum() >= len(DETECTORS)
        assert sample.metadata["partner_text"] in sample.store["mismatched_answer"]
        assert str(sample.metadata["partner_seed"]) in sample.store["mismatched_answer"]


def test_a_run_that_failed_and_was_retried_has_the_same_arrays(tmp_path, monkeypatch):
    subject = install(monkeypatch)
    whole = read_discovery(discover(tmp_path / "whole").location)
    subject.asked.clear()
    subject.fail_after = 9
    failed = discover(tmp_path)
    assert failed.status == "error"
    subject.fail_after = None
    [log] = eval_retry(failed.location, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success"
    again = read_discovery(log.location)
    for mine, theirs in [
        (again.pairs.matched_max, whole.pairs.matched_max),
        (again.pairs.mismatched_max, whole.pairs.mismatched_max),
    ]:
        # The order in which samples ended may differ.
        assert sorted(row.tobytes() for row in mine) == sorted(row.tobytes() for row in theirs)


def test_an_answer_whose_maker_failed_is_made_by_the_next_sample_that_needs_it(
    tmp_path, monkeypatch
):
    subject = install(monkeypatch)
    subject.fail_after = 0
    generate = subject.generate

    def fail_once(messages, config):
        try:
            return generate(messages, config)
        finally:
            subject.fail_after = None

    monkeypatch.setattr(subject, "generate", fail_once)
    asked = prompts("detector_discovery")[:5]
    task = Task(
        dataset=paired_dataset(asked, 1, 0, "pairs"),
        solver=read_pairs(layer=7, positions="generated"),
        fail_on_error=False,
    )
    [log] = inspect_eval(task, model=MODEL, log_dir=str(tmp_path), display="none")
    assert sum(sample.error is not None for sample in log.samples) == 1
    assert len(subject.asked) == len(set(subject.asked)) == 5
    for steering in subject.read_as:
        assert not steering.edits and steering.runtime == RUNTIME
        read = {(r.latents, r.layer, r.positions, r.reduce) for r in steering.readouts}
        assert read == {("all", 7, "generated", reduce) for reduce in ("max", "rate")}
    assert len(subject.read_as) == 2 * 4


def test_without_detectors_the_report_says_what_came_closest(tmp_path, monkeypatch):
    subject = install(monkeypatch)
    subject.planted = ()
    log = discover(tmp_path)
    report = find_detectors(log.location)
    found = report.sets["silent"]
    assert not found.detectors and len(found.nearest) == 10
    with pytest.raises(EsrError, match=r"no silent detectors \(nearest: latent \d+.*separability"):
        load_detectors(log.location, RUNTIME)


def test_the_command_prints_and_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    install(monkeypatch)
    log = discover(tmp_path)
    file = tmp_path / "detectors.json"
    run = CliRunner().invoke(
        app, ["detectors", log.location, "-o", str(file), "--min-mismatched", "0.9"]
    )
    assert run.exit_code == 0, run.output
    for latent in DETECTORS:
        assert str(latent) in run.output
    assert "would be found" in " ".join(run.output.split())
    assert read_detector_file(file).min_mismatched == 0.9
    run = CliRunner().invoke(app, ["detectors", log.location, "--rule", "loud"])
    assert run.exit_code == 1 and "neither silent nor separability" in run.output
    run = CliRunner().invoke(app, ["detectors", log.location, "--min-mismatched", "1.5"])
    assert run.exit_code == 1 and "--min-mismatched 1.5" in run.output


def test_missing_and_changed_arrays_are_one_sentence(tmp_path, monkeypatch):
    install(monkeypatch)
    log = discover(tmp_path, answers_per_task=1)
    [first, *_] = sorted((tmp_path / "logs" / "activations").iterdir())
    first.write_bytes(first.read_bytes()[:-4] + b"abcd")
    with pytest.raises(EsrError, match="have changed"):
        find_detectors(log.location)
    first.unlink()
    with pytest.raises(EsrError, match="missing"):
        find_detectors(log.location)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"topics": ["bake bread"]}, "none of the 20 topics"),
        ({"topics": [prompts("detector_discovery")[0].topic]}, "two tasks or more"),
        ({"answers_per_task": 0}, "answers_per_task=0 is refused"),
        ({"positions": "prompt"}, "positions=prompt is refused: it should be 'all' or 'generated'"),
        ({"prompts": "other"}, "prompts=other is refused: it should be 'main'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, args, said):
    install(monkeypatch)
    with pytest.raises(EsrError, match=said):
        discover(tmp_path, **args)


# Sets by other sources


def test_published_sets_belong_to_their_own_sae():
    llama = find_subject("llama-70b").runtime()
    sizes = {name: len(load_detectors(name, llama).latents) for name in published_sets()}
    assert sizes == {
        "paper_26": 26,
        "paper_26_positive": 18,
        "paper_26_negative": 8,
        "separability_25": 25,
        "backtracking_16": 16,
    }
    for name in sizes:
        with pytest.raises(EsrError, match="find this SAE's detectors with esr_eval/detectors"):
            load_detectors(name, RUNTIME)


def test_indices_are_a_set():
    assert load_detectors("40,7,12", RUNTIME).latents == (7, 12, 40)
    assert load_detectors([3], RUNTIME).latents == load_detectors(3, RUNTIME).latents == (3,)
    with pytest.raises(EsrError, match="no list of latents"):
        load_detectors([-1], RUNTIME)


def test_a_file_of_another_sae_or_of_nothing_is_refused(tmp_path, monkeypatch):
    install(monkeypatch)
    report = find_detectors(discover(tmp_path).location)
    file = tmp_path / "detectors.json"
    write_detector_file(report, file)
    with pytest.raises(EsrError, match="find its own"):
        load_detectors(str(file), find_subject("gemma-2b").runtime())
    content = json.loads(file.read_text())
    content["sets"]["silent"]["detectors"][0]["latent"] = 65_536
    file.write_text(json.dumps(content))
    with pytest.raises(EsrError, match="no detector file"):
        load_detectors(str(file), RUNTIME)
    file.write_text("[1, 2")
    with pytest.raises(EsrError, match="no detector file"):
        load_detectors(str(file), RUNTIME)
    with pytest.raises(EsrError, match=r"no detector file, log or published set 'paper_27'.*26"):
        load_detectors("paper_27", RUNTIME)
    with pytest.raises(EsrError, match="neither silent"):
        load_detectors(str(file), RUNTIME, "loud")


# The real subject


@pytest.mark.model
def test_discovery_on_the_embedded_subject(tmp_path):
    [log] = inspect_eval(
        "esr_eval/detectors",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args={
            "answers_per_task": 1,
            "topics": [prompt.topic for prompt in prompts("detector_discovery")[:4]],
            "positions": "generated",
        },
        max_tokens=16,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success"
    discovery = read_discovery(log.location)
    assert discovery.pairs.matched_max.shape == (4, 4096)
    assert (discovery.layer, discovery.positions) == (14, "generated")
    assert ((discovery.pairs.matched_rate > 0) == (discovery.pairs.matched_max > 0).any(0)).all()
    # 42 latents are active per token on average; position 0, where 3,624 fire, is not read.
    assert 20 < discovery.pairs.matched_rate.sum() < 90
    answers = {s.metadata["topic"]: s.output.completion for s in log.samples}
    for sample in log.samples:
        assert sample.store["mismatched_answer"] == answers[sample.metadata["partner_topic"]]
    assert list(tmp_path.glob("detectors_*.json"))
