"""Sweep, meta-prompts and held-out tasks end to end on the embedded subject, small."""

import statistics

import pytest
from evals import embedded

from esr_eval.dataset import meta_prompts, prompts
from esr_eval.errors import EsrError
from esr_eval.spec import Steering

pytestmark = pytest.mark.model


def boosts(log):
    found = []
    for sample in log.samples:
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        [edit] = Steering.from_extra_body(event.config.extra_body).edits
        found.append((sample.metadata["level"], edit.strength))
    return found


def test_the_sweep_spans_the_calibrated_strengths_and_reports_each_level(tmp_path):
    log = embedded("boost_sweep", tmp_path, levels=3, span_sd=2.0, n_latents=3, trials_per_latent=1)
    mean, sd = (log.eval.metadata[f"strength_{name}"] for name in ("mean", "sd"))
    assert {level for level, _ in boosts(log)} == {-2.0, 0.0, 2.0}
    for level, strength in boosts(log):
        assert strength == pytest.approx(max(0.0, mean + level * sd))
    [shown] = log.results.scores
    by_level = {
        name.removeprefix("first_score level "): metric.value
        for name, metric in shown.metrics.items()
        if name.startswith("first_score ")
    }
    assert set(by_level) == {"-2.0", "0.0", "2.0"}
    for level, value in by_level.items():
        scores = [
            s.scores["attempts"].value["first_score"]
            for s in log.samples
            if s.metadata["level"] == float(level)
        ]
        assert value == pytest.approx(statistics.mean(scores))
    seeds = {(s.metadata["latent"], s.metadata["seed"]) for s in log.samples}
    assert len(seeds) == 3 and len(log.samples) == 9


def test_a_meta_prompt_is_appended_to_replayed_trials(tmp_path):
    main = embedded("esr", tmp_path, n_latents=2, trials_per_latent=1, seed=7)
    log = embedded("meta_prompt", tmp_path, variant="ignore_latent_label", replay=main.location)
    for before, after in zip(main.samples, log.samples, strict=True):
        assert after.metadata == before.metadata
        assert after.input.startswith(before.input)
        assert after.metadata["label"] in after.input[len(before.input) :]
    with pytest.raises(EsrError, match="there are dont_get_distracted"):
        embedded("meta_prompt", tmp_path, variant="shout")
    assert len(meta_prompts()) == 4


def test_held_out_questions_are_none_of_the_38(tmp_path):
    log = embedded("held_out", tmp_path, n_latents=2, trials_per_latent=2)
    asked = {prompt.text for prompt in prompts("held_out")}
    assert all(sample.input in asked for sample in log.samples)


def test_prefill_continues_the_other_conditions_answers(tmp_path):
    args = {"n_latents": 2, "trials_per_latent": 2, "seed": 4}
    steered = embedded("esr", tmp_path, **args)
    unsteered = embedded("esr", tmp_path, **args, steering=False)
    control = embedded("prefill_control", tmp_path, source=steered.location, characters=30)
    mirror = embedded(
        "prefill_control", tmp_path, source=unsteered.location, characters=30, mirror=True
    )
    for log, origin, boosted in [(control, steered, False), (mirror, unsteered, True)]:
        before = {sample.id: sample.output.completion for sample in origin.samples}
        assert set(before) == {sample.id for sample in log.samples}
        for sample in log.samples:
            beginning = before[sample.id][:30].rstrip()
            assert sample.output.completion.startswith(beginning)
            assert len(sample.output.completion) > len(beginning)
            assert (sample.metadata["strength"] > 0) == boosted
            assert (sample.output.metadata["edited_positions"] > 0) == boosted
            assert sample.messages[-1].text == sample.output.completion
        assert log.eval.metadata["replay"]["eval_id"] == origin.eval.eval_id
    with pytest.raises(EsrError, match="not steered"):
        embedded("prefill_control", tmp_path, source=unsteered.location)

    # The same beginnings once more, with latents held at 0, and random ones in their place.
    discovery = embedded(
        "detectors", tmp_path, answers_per_task=1, topics=["tie a necktie", "write a cover letter"]
    )
    held = {"source": steered.location, "characters": 30, "detectors": discovery.location}
    held["rule"] = "separability"
    ablated = embedded("prefill_control", tmp_path, **held)
    random = embedded("prefill_control", tmp_path, **held, discovery=discovery.location)
    plain = {sample.id: sample for sample in control.samples}
    latents = [set(log.eval.metadata["ablation"]["latents"]) for log in (ablated, random)]
    assert len(latents[0]) == len(latents[1]) and not latents[0] & latents[1]
    for log in (ablated, random):
        assert {sample.id for sample in log.samples} == set(plain)
        for sample in log.samples:
            given = plain[sample.id].input[-1].text
            assert sample.input[-1].text == given
            assert sample.metadata == plain[sample.id].metadata
            assert sample.metadata["strength"] == 0 and "source_score" in sample.metadata
            done = sample.output.metadata
            assert done["edited_positions"] + done["held_positions"] > 0
            added = sample.output.completion.removeprefix(given)
            score = sample.scores["continuation"]
            assert len(added) < len(sample.output.completion)
            assert all(one["end"] <= len(added) for one in score.metadata["attempts"])
            assert 0 <= score.value["recovered_score"] <= 100
    answers = [{s.id: s.output.completion for s in log.samples} for log in (control, ablated)]
    assert answers[0] != answers[1], "what is held reaches what is generated"
