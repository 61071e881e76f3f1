"""Concept vectors: planted directions come out, files are checked, and steering with them works."""

import json

import numpy as np
import pytest
from inspect_ai import eval as inspect_eval
from typer.testing import CliRunner

from esr_eval._util.files import file_sha256
from esr_eval.cli import app
from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.spec import AddVector, Steering
from esr_eval.subjects import find_subject
from esr_eval.vectors.extract import contrasts, load_corpus, scaled
from esr_eval.vectors.file import (
    Concept,
    VectorInfo,
    load_tensors,
    read_vectors,
    vector_strengths,
    write_vectors,
)

SUBJECT = find_subject("smollm2-135m")
WIDTH = 576


def planted(rng, shift, texts=12, width=64, concepts=("a", "b", "c", "null")):
    """Unit noise, with each concept but the last moved along a line of its own."""
    lines = np.linalg.qr(rng.normal(size=(width, width)))[0][: len(concepts)]
    means, labels = [], []
    for number, concept in enumerate(concepts):
        move = 0.0 if concept == "null" else shift
        means.append(rng.normal(size=(texts, width)) + move * lines[number])
        labels += [concept] * texts
    return np.concatenate(means).astype(np.float32), labels, dict(zip(concepts, lines, strict=True))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_planted_directions_come_out_and_a_null_concept_stays_null():
    rng = np.random.default_rng(0)
    means, labels, lines = planted(rng, shift=8.0, texts=40)
    found = contrasts(means, labels)
    # The others' mean holds the other concepts' shifts: the difference points along the line
    # minus a third of the sum of theirs.
    for concept in "abc":
        rest = sum(lines[other] for other in "abc" if other != concept) / 3
        assert cosine(found[concept].difference, lines[concept] - rest) > 0.98
        assert found[concept].separation > 2
    # Against itself the null concept has only the others' shifts, and none of its own.
    alone = contrasts(*planted(rng, shift=0.0, texts=40)[:2])
    assert all(abs(one.separation) < 1 for one in alone.values())
    biggest = max(np.linalg.norm(one.difference) for one in alone.values())
    assert biggest < 0.3 * min(np.linalg.norm(found[c].difference) for c in "abc")


def test_separation_of_texts_without_a_common_subject_is_zero_on_average():
    rng = np.random.default_rng(1)
    seen = [
        one.separation
        for _ in range(60)
        for one in contrasts(*planted(rng, shift=0.0, texts=12)[:2]).values()
    ]
    assert abs(np.mean(seen)) < 4 * np.std(seen) / np.sqrt(len(seen)) + 0.02
    # The same measure without holding a text out would see structure in pure noise.
    means = planted(rng, shift=0.0)[0]
    own = means[:12]
    line = own.mean(0) - means[12:].mean(0)
    naive = float(((own - means[12:].mean(0)) @ line).mean() / ((means[12:] @ line).std()))
    assert naive > 1 > np.mean(seen)


def test_scaled_has_the_length_and_zero_points_nowhere():
    vector = scaled(np.array([3.0, 4.0], dtype=np.float32), 10.0)
    np.testing.assert_allclose(vector, [6.0, 8.0])
    with pytest.raises(EsrError, match="no vector"):
        scaled(np.zeros(3, dtype=np.float32), 1.0)


def test_the_shipped_corpus_shares_no_subject_with_the_tasks(tmp_path):
    corpus = load_corpus()
    texts = [text for about in corpus.values() for text in about]
    assert len(corpus) == 12 and {len(about) for about in corpus.values()} == {12}
    assert len(set(texts)) == 144
    for prompt in prompts():
        assert not [text for text in texts if prompt.topic in text.lower()]
    for content, sentence in (
        ("[]", "two concepts"),
        ("{", "not JSON"),
        ('{"a": ["x", "y"], "b": ["z"]}', "2 texts or more for 'b'"),
    ):
        path = tmp_path / "corpus.json"
        path.write_text(content, "utf-8")
        with pytest.raises(EsrError, match=sentence):
            load_corpus(path)


def info(**change):
    runtime = SUBJECT.runtime()
    known = {
        "model": runtime.model,
        "revision": runtime.revision,
        "adapter": None,
        "dtype": "float32",
        "layer": 14,
        "d_model": WIDTH,
        "mean_norm": 150.0,
        "corpus": "0" * 16,
        "concepts": (
            Concept(name="oceans", texts=2, separation=2.0, strength=0.4),
            Concept(name="snow", texts=2, separation=2.0),
        ),
        "calibration": {"grader": "esr-judge/offline"},
    }
    return VectorInfo(**(known | change))


def written(path, made=None):
    made = made or info()
    rng = np.random.default_rng(2)
    write_vectors(path, made, {c.name: rng.normal(size=made.d_model) for c in made.concepts})
    return path


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = written(tmp_path / "v.safetensors")
    file = read_vectors(str(path))
    assert file.info == info() and file.sha256 == file_sha256(path)
    assert [(one.index, one.label) for one in file.latents()] == [(0, "oceans"), (1, "snow")]
    tensors = load_tensors(str(path))
    assert all(v.dtype == np.float32 and v.shape == (WIDTH,) for v in tensors.values())
    file.check_fits(SUBJECT.runtime(), SUBJECT)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "other/model"}, "taken from model other/model"),
        ({"revision": "abc"}, "taken from revision abc"),
        ({"d_model": 64}, "have 64 values"),
        ({"layer": 30}, "layers 0 to 29"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_loads(tmp_path, change, sentence):
    path = written(tmp_path / "v.safetensors", info(**change))
    with pytest.raises(EsrError, match=sentence):
        inspect_eval(
            "esr_eval/vectors",
            model="esr/smollm2-135m",
            task_args={"vectors": str(path)},
            log_dir=str(tmp_path / "logs"),
            display="none",
        )
    assert not list(tmp_path.rglob("*.eval"))


def test_a_file_that_is_none_is_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(EsrError, match="no vector file"):
        read_vectors(str(tmp_path / "none.safetensors"))
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"not tensors")
    with pytest.raises(EsrError, match="no safetensors file"):
        read_vectors(str(path))
    save_file({"oceans": np.zeros(WIDTH, dtype=np.float32)}, path)
    with pytest.raises(EsrError, match="does not say where"):
        read_vectors(str(path))
    meta = {"esr_eval": info().model_dump_json()}
    save_file({"oceans": np.zeros(WIDTH, dtype=np.float32)}, path, metadata=meta)
    with pytest.raises(EsrError, match="'snow'"):
        read_vectors(str(path))


def test_strengths_are_calibrated_by_the_same_judge_or_given(tmp_path):
    file = read_vectors(str(written(tmp_path / "v.safetensors")))
    oceans, snow = file.latents()
    judge = "esr-judge/offline"
    assert vector_strengths("1.5x", file, [oceans], judge) == {
        0: (pytest.approx(0.6), "calibrated")
    }
    assert vector_strengths(0.2, file, [oceans, snow], "any") == {
        0: (0.2, "given"),
        1: (0.2, "given"),
    }
    with pytest.raises(EsrError, match="no strength for snow"):
        vector_strengths("calibrated", file, [oceans, snow], judge)
    with pytest.raises(EsrError, match="found with the judge esr-judge/offline") as missing:
        vector_strengths("calibrated", file, [oceans], "openai/other")
    command = f"esr-eval vectors calibrate {file.path} --model {SUBJECT.name} --grader openai/other"
    assert command in missing.value.message
    with pytest.raises(EsrError, match="strength=much"):
        vector_strengths("much", file, [oceans], judge)


CORPUS = {
    "snow": [
        "Snow fell all night and buried the village.",
        "The children rolled the wet snow into balls.",
        "A blizzard closed the pass with drifts of snow.",
    ],
    "trains": [
        "The night train left the station late.",
        "The locomotive pulled twelve carriages over the bridge.",
        "The conductor punched our tickets on the express.",
    ],
}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    corpus, path = folder / "corpus.json", folder / "v.safetensors"
    corpus.write_text(json.dumps(CORPUS), "utf-8")
    args = ["vectors", "extract", "--model", "esr/smollm2-135m", "--corpus", str(corpus)]
    done = CliRunner().invoke(app, [*args, "-M", "device=cpu", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert "2 vectors written" in " ".join(done.output.split())
    return path


def run(path, tmp_path, **task_args):
    [log] = inspect_eval(
        "esr_eval/vectors",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args={"vectors": str(path), "trials_per_vector": 1, **task_args},
        max_tokens=16,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    return log


@pytest.mark.model
def test_extracted_vectors_have_the_length_of_the_mean_residual(extracted):
    file = read_vectors(str(extracted))
    file.check_fits(SUBJECT.runtime(), SUBJECT)
    assert file.info.layer == 14 and 100 < file.info.mean_norm < 250
    for vector in load_tensors(str(extracted)).values():
        assert np.linalg.norm(vector) == pytest.approx(file.info.mean_norm, rel=1e-4)
    # With two concepts, one's vector is the other's negative.
    snow, trains = (load_tensors(str(extracted))[name] for name in CORPUS)
    assert cosine(snow, trains) == pytest.approx(-1, abs=1e-4)


@pytest.mark.model
def test_mean_residuals_are_the_same_alone_and_beside_longer_texts(backend):
    spec = Steering(runtime=backend.runtime)
    chat = [{"role": "user", "content": "Write one sentence."}]
    passages = [backend.passage(chat, text * n, spec) for n, text in ((1, "Snow fell."), (9, "A "))]
    together, norms = backend.mean_residuals(passages, 14)
    alone, norm = backend.mean_residuals(passages[:1], 14)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-3, atol=1e-2)
    assert norm[0] == pytest.approx(norms[0], rel=1e-4)
    # The mean of vectors is never longer than their mean length.
    assert (np.linalg.norm(together, axis=1) <= norms).all()
    with pytest.raises(EsrError, match="layers 0 to 29"):
        backend.mean_residuals(passages, 30)
    with pytest.raises(EsrError, match="empty text"):
        backend.mean_residuals([backend.passage(chat, "", spec)], 14)


@pytest.mark.model
def test_a_run_adds_the_vectors_and_its_log_can_be_replayed(extracted, tmp_path):
    log = run(extracted, tmp_path / "a", strength=0.6, holistic=True)
    assert log.eval.metadata["experiment_id"] == "vectors"
    assert log.eval.metadata["vectors"]["sha256"] == file_sha256(extracted)
    for sample in log.samples:
        assert sample.metadata["vector"] == sample.metadata["label"]
        assert sample.metadata["label"] == list(CORPUS)[sample.metadata["latent"]]
        assert sample.output.metadata["edited_positions"] > 0
        assert set(sample.scores) == {"attempts", "improvement"}
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        [edit] = Steering.from_extra_body(event.config.extra_body).edits
        assert isinstance(edit, AddVector)
        assert (edit.tensor, edit.strength) == (sample.metadata["vector"], 0.6)
        assert (edit.layer, edit.sha256) == (14, file_sha256(extracted))
    plain = run(extracted, tmp_path / "b", replay=log.location, steering=False)
    again = run(extracted, tmp_path / "c", replay=log.location)

    def texts(log):
        return {sample.id: sample.output.completion for sample in log.samples}

    assert texts(again) == texts(log)
    assert set(texts(plain)) == set(texts(log))
    assert all(texts(plain)[name] != text for name, text in texts(log).items())
    assert all(s.output.metadata["edited_positions"] == 0 for s in plain.samples)


@pytest.mark.model
def test_calibration_writes_strengths_that_a_run_then_takes(extracted, tmp_path):
    path = tmp_path / "v.safetensors"
    path.write_bytes(extracted.read_bytes())
    before = load_tensors(str(path))
    args = ["vectors", "calibrate", str(path), "--model", "esr/smollm2-135m", "-M", "device=cpu"]
    effort = {"rounds": 1, "samples_per_round": 1, "max_tokens": 12}
    args += ["-T", f"prior={json.dumps(effort)}", "-T", "check_samples=1"]
    done = CliRunner().invoke(app, [*args, "--log-dir", str(tmp_path / "logs")])
    assert done.exit_code == 0, done.output
    file = read_vectors(str(path))
    assert file.info.calibration["grader"] == "esr-judge/offline"
    assert file.info.calibration["rounds"] == 1
    for concept in file.info.concepts:
        # One round moves the median off the prior mean, up or down.
        assert 0 < concept.strength < 1.5 and concept.strength != pytest.approx(0.4)
        assert 0 <= concept.achieved_score <= 100
    after = load_tensors(str(path))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    log = run(path, tmp_path / "a", n_vectors=1)
    [sample] = log.samples
    chosen = file.info.concepts[sample.metadata["latent"]]
    assert sample.metadata["strength"] == chosen.strength


@pytest.mark.model
def test_the_shipped_vectors_move_the_text_to_their_concept(tmp_path):
    shipped = f"embedded:{SUBJECT.name}/vectors.safetensors"
    file = read_vectors(shipped)
    file.check_fits(SUBJECT.runtime(), SUBJECT)
    assert all(concept.separation > 1 and concept.strength for concept in file.info.concepts)
    task = {"trials_per_vector": 1, "n_vectors": 6, "seed": 0}
    steered = run(shipped, tmp_path, strength=0.6, **task)
    plain = run(shipped, tmp_path / "plain", steering=False, **task)

    from esr_eval._util.minilm import SentenceEncoder

    encoder = SentenceEncoder()
    labels = [concept.name for concept in file.info.concepts]
    columns = encoder.encode(labels)

    def similarity(log):
        return {s.id: encoder.encode([s.output.completion])[0] @ columns.T for s in log.samples}

    with_vector, without = similarity(steered), similarity(plain)
    rises = {name: with_vector[name] - without[name] for name in with_vector}
    own = [rises[s.id][s.metadata["latent"]] for s in steered.samples]
    others = [np.delete(rises[s.id], s.metadata["latent"]).mean() for s in steered.samples]
    assert np.mean(own) > 0.1 > np.mean(others)
