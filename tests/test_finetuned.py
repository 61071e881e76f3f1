"""The fine-tuned subject: the base's trials, at strengths that were found on the tuned model."""

import pytest
from inspect_ai import eval as inspect_eval
from simulation import LABELS, MODEL, install

from esr_eval._util.paths import CACHE_ENV
from esr_eval.errors import EsrError
from esr_eval.spec import Steering

ADAPTER = {"adapter": "someone/self-correction"}


@pytest.fixture
def labels(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    path = tmp_path / "labels.csv"
    path.write_text(LABELS)
    return str(path)


def run(
    task, tmp_path, model=MODEL, judge="sim-judge/noisy", max_tokens=16, model_args=None, **args
):
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model=model,
        model_args=model_args or {},
        model_roles={"grader": judge},
        task_args=args,
        max_tokens=max_tokens,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error and log.error.message
    return log


def trials(log):
    keys = ("latent", "topic", "seed")
    return [tuple(sample.metadata[key] for key in keys) for sample in log.samples]


def strengths(log):
    return {sample.metadata["latent"]: sample.metadata["strength"] for sample in log.samples}


def test_a_replay_takes_the_trials_of_the_base_and_the_strengths_of_the_tuned_model(
    tmp_path, labels, monkeypatch
):
    install(monkeypatch)
    base = run("esr", tmp_path, latents=labels, trials_per_latent=3, strength=5)
    searched = run("finetuned", tmp_path, replay=base.location, model_args=ADAPTER)
    found = run("calibrate", tmp_path, latents=labels, model_args=ADAPTER)
    assert {sample.scores["strength"].value["cached"] for sample in found.samples} == {1}
    calibrated = {
        sample.metadata["latent"]: sample.scores["strength"].value["strength"]
        for sample in found.samples
    }
    tuned = run("finetuned", tmp_path, replay=base.location, model_args=ADAPTER)
    assert strengths(searched) == strengths(tuned)
    assert trials(tuned) == trials(base)
    assert strengths(tuned) == pytest.approx(calibrated) != strengths(base)
    assert tuned.eval.metadata["runtime"]["adapter"] == ADAPTER["adapter"]
    assert tuned.eval.metadata["replay"]["eval_id"] == base.eval.eval_id
    same = run("finetuned", tmp_path, replay=base.location, strength="replay", model_args=ADAPTER)
    assert strengths(same) == strengths(base) == {1: 5.0, 2: 5.0}
    off = run("finetuned", tmp_path, replay=base.location, steering=False, model_args=ADAPTER)
    assert set(strengths(off).values()) == {0.0}
    assert off.eval.metadata["condition"] == "fine-tuned, no steering"


def test_without_an_adapter_or_a_log_it_is_refused(tmp_path, labels, monkeypatch):
    install(monkeypatch)
    with pytest.raises(EsrError, match="has no adapter"):
        run("finetuned", tmp_path, latents=labels, strength=5)
    with pytest.raises(EsrError, match="strengths of a log"):
        run("finetuned", tmp_path, latents=labels, strength="replay", model_args=ADAPTER)


@pytest.mark.model
def test_the_embedded_tuned_subject_answers_otherwise_than_its_base(tmp_path):
    settings = {"judge": "esr-judge/offline", "max_tokens": 24}
    embedded = {"n_latents": 2, "trials_per_latent": 2, "strength": 60}
    base = run("esr", tmp_path, model="esr/smollm2-135m", **settings, **embedded)
    tuned = run(
        "finetuned",
        tmp_path,
        model="esr/smollm2-135m-esr",
        replay=base.location,
        strength="replay",
        **settings,
    )
    assert trials(tuned) == trials(base)
    before, after = ([s.output.completion for s in log.samples] for log in (base, tuned))
    assert before != after
    for sample in tuned.samples:
        assert sample.output.metadata["edited_positions"] > 0
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        spec = Steering.from_extra_body(event.config.extra_body)
        assert spec.runtime.adapter == "embedded:smollm2-135m-esr"
