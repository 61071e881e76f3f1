"""The strength of a vector is found where it was planted; an interrupted search goes on."""

import json

import numpy as np
import pytest
from inspect_ai import Task, eval_retry
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from simulation import MODEL, SUBJECT, TRUE_STRENGTH, install
from typer.testing import CliRunner

from esr_eval._util.paths import CACHE_ENV
from esr_eval.calibration.store import cache_folder
from esr_eval.cli import app
from esr_eval.provider.api import ESRModelAPI
from esr_eval.spec import AddVector, Boost, Steering
from esr_eval.subjects import find_subject
from esr_eval.tasks.calibrate_vectors import calibrate_vectors, vector_strength
from esr_eval.vectors.file import (
    VECTOR_STRENGTH,
    Concept,
    VectorInfo,
    VectorStrength,
    bisect_vector,
    read_vectors,
    vector_prior,
    write_vectors,
)

PLANTED = 0.5
SOURCE = ("none.safetensors", "0" * 64, 19)
VECTORS = {"snow": 1, "trains": 2}
"""The stand-in's latents that answer for the vectors."""
ROUNDS, PER_ROUND, CHECKED = 10, 4, 4
WHOLE = len(VECTORS) * (ROUNDS * PER_ROUND + CHECKED)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))


@pytest.fixture
def subject(monkeypatch):
    subject = install(monkeypatch)

    async def generate(self, input, tools, tool_choice, config):
        """The stand-in answers to boosts: one that is as strong, for its model, as the vector."""
        [edit] = Steering.from_extra_body(config.extra_body).edits
        assert isinstance(edit, AddVector) and edit.layer == 19
        latent = VECTORS[edit.tensor]
        boost = Boost(
            latent=latent,
            strength=edit.strength * TRUE_STRENGTH[latent] / PLANTED,
            layer=edit.layer,
        )
        spec = Steering(runtime=self.runtime, edits=(boost,))
        return subject.answer(config.model_copy(update={"extra_body": spec.to_extra_body()}))

    monkeypatch.setattr(ESRModelAPI, "generate", generate)
    return subject


def search(judge, tmp_path, samples_per_round=8):
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


def test_the_planted_strength_is_found(tmp_path, subject):
    sample = search("sim-judge/noisy", tmp_path)
    assert {latent for latent, _ in subject.calls} == {VECTORS["snow"]}
    found = VectorStrength.model_validate(sample.store[VECTOR_STRENGTH])
    assert found.strength == pytest.approx(PLANTED, rel=0.1)
    assert len(found.rounds) == 10 and len(found.check.scores) == 4
    value = sample.scores["vector_strength"].value
    assert value == {"strength": found.strength, "achieved_score": found.check.mean}


def test_without_verdicts_there_is_no_strength(tmp_path, subject):
    sample = search("sim-judge/mute", tmp_path, samples_per_round=1)
    assert sample.store[VECTOR_STRENGTH] is None
    assert sample.scores["vector_strength"].reason == "grader_failed"
    assert "4 rounds stayed unjudged" in sample.output.completion
    assert not list(cache_folder().glob("*"))


def made(path):
    known = find_subject(SUBJECT)
    info = VectorInfo(
        model=known.model,
        revision=known.revision,
        adapter=None,
        dtype="float32",
        layer=19,
        d_model=known.d_model,
        mean_norm=1.0,
        corpus="0" * 16,
        concepts=tuple(Concept(name=name, texts=2, separation=2.0) for name in VECTORS),
    )
    write_vectors(path, info, {name: np.ones(known.d_model) for name in VECTORS})
    return path


def strengths(path):
    return {c.name: (c.strength, c.achieved_score) for c in read_vectors(str(path)).info.concepts}


def command(path, tmp_path):
    effort = json.dumps({"samples_per_round": PER_ROUND})
    args = ["vectors", "calibrate", str(path), "--model", MODEL, "--grader", "sim-judge/noisy"]
    args += ["-T", f"prior={effort}", "--log-dir", str(tmp_path / "logs")]
    return CliRunner().invoke(app, args)


@pytest.mark.parametrize("done", [50, WHOLE - CHECKED])
def test_an_interrupted_command_goes_on_where_it_stopped_and_ends_the_same(
    done, subject, tmp_path, monkeypatch
):
    path, other = made(tmp_path / "v.safetensors"), made(tmp_path / "other.safetensors")
    before = path.read_bytes()
    subject.fail_after = done
    broken = command(path, tmp_path)
    assert broken.exit_code == 1 and path.read_bytes() == before
    assert "the same command goes on from here" in " ".join(broken.output.split())
    assert len(list(cache_folder().glob("*.partial.json"))) == len(VECTORS)
    subject.fail_after = None
    ended = command(path, tmp_path)
    assert ended.exit_code == 0, ended.output
    # At most one unfinished round, or the check, of each vector is asked again.
    assert WHOLE <= len(subject.calls) <= WHOLE + len(VECTORS) * PER_ROUND
    assert not list(cache_folder().glob("*"))

    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "untouched"))
    assert command(other, tmp_path).exit_code == 0
    assert strengths(path) == strengths(other)
    for strength, score in strengths(path).values():
        assert strength == pytest.approx(PLANTED, rel=0.25) and score is not None


def run(path, tmp_path, **args):
    [log] = inspect_eval(
        calibrate_vectors,
        model=MODEL,
        model_roles={"grader": "sim-judge/noisy"},
        task_args={"vectors": str(path), "prior": {"samples_per_round": PER_ROUND}, **args},
        log_dir=str(tmp_path / "logs"),
        display="none",
        max_samples=8,
    )
    return log


def test_a_retried_log_goes_on_and_another_seed_or_fresh_starts_anew(subject, tmp_path):
    path = made(tmp_path / "v.safetensors")
    subject.fail_after = 50
    broken = run(path, tmp_path)
    assert broken.status == "error"
    subject.fail_after = None
    [log] = eval_retry(broken, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    assert WHOLE <= len(subject.calls) <= WHOLE + len(VECTORS) * PER_ROUND
    for change in ({"seed": 1}, {"fresh": True}):
        subject.calls.clear()
        assert run(path, tmp_path, **change).status == "success"
        assert len(subject.calls) == WHOLE
