"""The strength of a vector is found where it was planted; a judge that says nothing finds none."""

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from simulation import MODEL, TRUE_STRENGTH, install

from esr_eval.provider.api import ESRModelAPI
from esr_eval.spec import AddVector, Boost, Steering
from esr_eval.subjects import find_subject
from esr_eval.tasks.calibrate_vectors import vector_strength
from esr_eval.vectors.search import FOUND, VectorStrength, bisect_vector, vector_prior

PLANTED = 0.5
SOURCE = ("none.safetensors", "0" * 64, 19)


def search(judge, tmp_path, monkeypatch, samples_per_round=8):
    subject = install(monkeypatch)

    async def generate(self, input, tools, tool_choice, config):
        """The stand-in answers to boosts: one that is as strong, for its model, as the vector."""
        [edit] = Steering.from_extra_body(config.extra_body).edits
        assert isinstance(edit, AddVector) and (edit.tensor, edit.layer) == ("snow", 19)
        boost = Boost(
            latent=1, strength=edit.strength * TRUE_STRENGTH[1] / PLANTED, layer=edit.layer
        )
        spec = Steering(runtime=self.runtime, edits=(boost,))
        return subject.answer(config.model_copy(update={"extra_body": spec.to_extra_body()}))

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    prior = vector_prior(find_subject("llama-8b"), {"samples_per_round": samples_per_round})
    [log] = inspect_eval(
        Task(
            dataset=[Sample(input="?", id="snow", metadata={"vector_index": 0, "concept": "snow"})],
            solver=bisect_vector(SOURCE, prior, 0.6, 4, 0),
            scorer=vector_strength(),
        ),
        model=MODEL,
        model_roles={"grader": judge},
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    return log.samples[0]


def test_the_planted_strength_is_found(tmp_path, monkeypatch):
    sample = search("sim-judge/noisy", tmp_path, monkeypatch)
    found = VectorStrength.model_validate(sample.store[FOUND])
    assert found.strength == pytest.approx(PLANTED, rel=0.1)
    assert len(found.rounds) == 10 and len(found.check.scores) == 4
    value = sample.scores["vector_strength"].value
    assert value == {"strength": found.strength, "achieved_score": found.check.mean}


def test_without_verdicts_there_is_no_strength(tmp_path, monkeypatch):
    sample = search("sim-judge/mute", tmp_path, monkeypatch, samples_per_round=1)
    assert sample.store[FOUND] is None
    assert sample.scores["vector_strength"].reason == "grader_failed"
