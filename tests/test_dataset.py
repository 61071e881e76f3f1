import json

import pytest

from esr_eval.data.arguments import strength_rule
from esr_eval.data.trial import Strength, Trial
from esr_eval.dataset import (
    Latent,
    choose_latents,
    choose_prompts,
    draw_trials,
    load_latents,
    prompts,
    trials_dataset,
)
from esr_eval.errors import EsrError
from esr_eval.subjects import embedded_path, find_subject, subjects

LATENTS = [Latent(index=i, label=f"concept {i}") for i in (3, 8, 21, 40)]
STRENGTHS = {latent.index: Strength(10.0 + latent.index, "calibrated") for latent in LATENTS}


def trials(latents, condition="steered", seed=0, per_latent=5):
    data = trials_dataset(
        draw_trials(latents, STRENGTHS, prompts(), per_latent, seed, condition), "trials"
    )
    return [(sample.id, sample.input, sample.metadata_as(Trial)) for sample in data]


def test_there_are_38_main_tasks_in_the_papers_two_frames():
    asked = prompts()
    assert len(asked) == len({p.topic for p in asked}) == 38
    assert sum(p.text.startswith("Explain how to ") for p in asked) == 19
    assert sum(p.text.startswith("How do you ") and p.text.endswith("?") for p in asked) == 19
    others = [prompts("detector_discovery"), prompts("held_out")]
    assert [len(other) for other in others] == [20, 20]
    assert not {p.topic for p in asked} & {p.topic for other in others for p in other}
    assert all(p.text.endswith("?") for p in others[1])


def test_a_latents_trials_do_not_depend_on_the_other_latents():
    alone = trials(LATENTS[1:2])
    assert alone == [t for t in trials(LATENTS) if t[2].latent == 8]


def test_the_baseline_asks_the_same_with_the_boost_off():
    steered, unsteered = trials(LATENTS), trials(LATENTS, "unsteered")
    key = [(t.latent, t.topic, t.seed, text) for _, text, t in steered]
    assert key == [(t.latent, t.topic, t.seed, text) for _, text, t in unsteered]
    assert {t.strength for _, _, t in unsteered} == {0.0}
    assert {t.strength for _, _, t in steered} == {one.value for one in STRENGTHS.values()}
    assert not any(t.pending for _, _, t in steered + unsteered)
    assert [i for i, _, _ in steered] == [i for i, _, _ in unsteered]


def test_ids_are_unique_stable_and_tasks_do_not_repeat_before_all_were_asked():
    many = trials(LATENTS[:1], per_latent=50)
    assert len({i for i, _, _ in many}) == 50
    assert len({t.topic for _, _, t in many[:38]}) == 38
    assert many == trials(LATENTS[:1], per_latent=50)
    assert many != trials(LATENTS[:1], per_latent=50, seed=1)


def test_labels_are_read_from_csv_and_both_neuronpedia_forms(tmp_path):
    subject = find_subject("llama-8b")
    csv = tmp_path / "l.csv"
    csv.write_text('index_in_sae,label\n5,"boats, ships"\n9,rain\n', "utf-8")
    entries = [{"index": "5", "description": "boats, ships"}, {"index": 9, "description": "rain"}]
    whole, lines = tmp_path / "l.json", tmp_path / "l.jsonl"
    whole.write_text(json.dumps(entries), "utf-8")
    lines.write_text("\n".join(map(json.dumps, entries)), "utf-8")
    want = [Latent(index=5, label="boats, ships"), Latent(index=9, label="rain")]
    for path in (csv, whole, lines):
        assert load_latents(subject, str(path)) == want


def test_a_bad_list_of_labels_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path))
    bad = tmp_path / "bad.csv"
    bad.write_text("latent,name\n1,x\n", "utf-8")
    with pytest.raises(EsrError, match="index_in_sae,label"):
        load_latents(find_subject("llama-8b"), str(bad))
    with pytest.raises(EsrError, match="no file or folder of labels"):
        load_latents(find_subject("llama-8b"), str(tmp_path / "none.csv"))
    with pytest.raises(EsrError, match="-T latents="):
        load_latents(find_subject("gemma-2b"))


def test_choosing_latents_and_topics():
    assert [x.index for x in choose_latents(LATENTS, "8,3", None, 0)] == [8, 3]
    assert [x.index for x in choose_latents(LATENTS, 21, None, 0)] == [21]
    assert len(choose_latents(LATENTS, None, 2, 0)) == 2
    assert choose_latents(LATENTS, None, 2, 0) == choose_latents(LATENTS, None, 2, 0)
    assert choose_latents(LATENTS, None, None, 0) == LATENTS
    for wanted, count, word in [
        ("7", None, "Latent 7"),
        ("x", None, "'x'"),
        (None, 9, "n_latents=9"),
    ]:
        with pytest.raises(EsrError, match=word):
            choose_latents(LATENTS, wanted, count, 0)
    assert [p.topic for p in choose_prompts("plan a party, write a resume")] == [
        "plan a party",
        "write a resume",
    ]
    with pytest.raises(EsrError, match="did you mean 'plan a party'"):
        choose_prompts("plan the party")


def test_subjects_carry_the_papers_settings():
    known = subjects()
    papers = {"llama-70b", "llama-8b", "gemma-2b", "gemma-9b", "gemma-27b"}
    assert papers | {"smollm2-135m", "smollm2-135m-esr"} <= set(known)
    assert papers < {name for name, one in known.items() if one.calibration}
    big = known["llama-70b"]
    assert (big.steering_layer, big.feature_layer, big.repetition_penalty) == (33, 50, 1.2)
    assert big.calibration.samples_per_round == 5
    assert {s.calibration.rounds for s in known.values() if s.calibration} == {10}
    with pytest.raises(EsrError, match="Did you mean llama-70b"):
        find_subject("lama-70b")
    assert find_subject("esr/gemma-9b").name == "gemma-9b"


def test_a_tuned_subject_is_its_base_with_an_adapter():
    base, tuned = find_subject("smollm2-135m"), find_subject("smollm2-135m-esr")
    assert base.tuned == tuned.name and tuned.tuned is None and base.adapter is None
    own = {"name", "tuned", "adapter", "strengths"}
    assert tuned.model_dump(exclude=own) == base.model_dump(exclude=own)
    assert embedded_path(tuned.adapter).is_dir()
    assert tuned.runtime().adapter == tuned.adapter


def test_the_embedded_subjects_labels_fit_its_sae():
    from esr_eval.sae.files import local_folder, read_sae_config

    subject = find_subject("smollm2-135m")
    latents = load_latents(subject)
    config = read_sae_config(local_folder(subject.sae))
    config.check_width(subject.d_model, subject.name)
    for latent in latents:
        config.check_latent(latent.index)
    assert config.n_latents == subject.n_latents
    assert config.layer == subject.feature_layer
    assert len(latents) >= 40
    assert len({latent.label for latent in latents}) == len(latents)


def test_every_shipped_latent_has_a_shipped_strength(tmp_path, monkeypatch):
    """With an empty cache: what `strength=calibrated` finds on a fresh clone."""
    from esr_eval.calibration.strengths import known_strengths

    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path))
    subject = find_subject("smollm2-135m")
    latents = load_latents(subject)

    def known(strength, grader=subject.grader):
        rule = strength_rule(strength)
        found = known_strengths(rule, subject.runtime(), subject, latents, grader)
        return {index: one.value for index, one in found.items()}

    calibrated = known("calibrated")
    assert set(calibrated) == {latent.index for latent in latents}
    prior = subject.calibration
    assert all(prior.lower < strength < prior.upper for strength in calibrated.values())
    assert known("2x") == {index: 2 * strength for index, strength in calibrated.items()}
    assert set(known(60, "x/y").values()) == {60.0}
    assert known("calibrated", "other/judge") == {}
