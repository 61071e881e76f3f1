"""Which latents are kept: the rules on made-up activations, and a run on the embedded subject."""

import csv
from pathlib import Path

import numpy as np
import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai import score as inspect_score
from inspect_ai.dataset import Sample
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.cli.latents import read_selection
from esr_eval.dataset import Latent, load_latents, prompts
from esr_eval.errors import EsrError
from esr_eval.selection.rules import Finding, activities, draw_candidates, funnel_of
from esr_eval.selection.survey import survey_candidates
from esr_eval.subjects import find_subject
from esr_eval.tasks.select_latents import selection

LABELLED = [Latent(index=i, label=f"label {i}") for i in range(40)]


def findings(maxima, latents, scores):
    known = activities(np.array(maxima, dtype=np.float32), ["tea", "maps"], latents)
    return {i: Finding(activity=known[i], concreteness=scores.get(i)) for i in latents}


def test_candidates_are_drawn_by_the_seed_alone_and_at_most_all():
    first = draw_candidates(LABELLED, 5, 3, seed=1)
    assert len(first) == len(set(first)) == 15
    assert first == draw_candidates(LABELLED, 5, 3, seed=1) != draw_candidates(LABELLED, 5, 3, 2)
    assert len(draw_candidates(LABELLED, 20, 3, seed=1)) == 40
    assert draw_candidates(LABELLED, None, 3, seed=1) == LABELLED
    with pytest.raises(EsrError, match="wanted=41, but there are 40"):
        draw_candidates(LABELLED, 41, 3, seed=0)
    with pytest.raises(EsrError, match=r"factor=0\.5"):
        draw_candidates(LABELLED, 5, 0.5, seed=0)


def test_rules_on_planted_activations():
    # Of 300 latents the first 200 are active on the first prompt, less and less; latent 250 is
    # active on the second alone.
    maxima = np.zeros((2, 300))
    maxima[0, :200] = np.arange(200, 0, -1)
    maxima[1, 250] = 0.5
    scores = {0: 90.0, 99: 90.0, 100: 65.0, 250: 90.0, 280: 90.0, 281: 64.0}
    found = findings(maxima, [0, 99, 100, 250, 280, 281, 282], scores)
    assert [found[i].activity.best_rank for i in (0, 99, 100, 250, 280)] == [1, 100, 101, 1, None]
    assert [found[i].activity.prompt for i in (0, 250, 280)] == ["tea", "maps", None]
    zero = {i: one.rejection("zero", 65) for i, one in found.items()}
    relevant = dict.fromkeys((0, 99, 100, 250), "relevant")
    assert zero == {**relevant, 280: None, 281: "abstract", 282: "unrated"}
    # A silent latent is never among the most active, even where fewer than 100 are active.
    assert {i: one.rejection("top100", 65) for i, one in found.items()} == zero | {100: None}

    funnel = funnel_of(list(found.values()), "top100", 65, labelled=300, wanted=1)
    assert funnel.rejected == {"unrated": 1, "abstract": 1, "relevant": 3}
    assert funnel.kept == 2
    assert [left for _, _, left in funnel.rows()] == [300, 7, 6, 5, 2, 1]
    assert sum(rejected for _, rejected, _ in funnel.rows()) == 300 - 1


@pytest.mark.model
def test_selecting_the_embedded_subjects_latents(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    labels = "embedded:smollm2-135m/labels.csv"
    every = load_latents(find_subject("smollm2-135m"), labels)
    available = {latent.index: latent for latent in every}
    mixed = [available[143], available[238], Latent(index=5, label="the word of")]
    labels = tmp_path / "labels.csv"
    lines = ["index_in_sae,label", *(f"{one.index},{one.label}" for one in mixed)]
    labels.write_text("\n".join(lines) + "\n", "utf-8")

    topics = [prompt.topic for prompt in prompts()[:3]]

    [log] = inspect_eval(
        "esr_eval/select_latents",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args={"latents": str(labels), "topics": topics},
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error
    rows = {s.metadata["latent"]: s.scores["selection"] for s in log.samples}
    # The embedded labels were chosen among latents silent on the prompts (model card).
    for index in (143, 238):
        assert rows[index].value["relevant"] == rows[index].value["max_activation"] == 0
        assert rows[index].metadata["best_rank"] is None
    for score in rows.values():
        assert 0 <= score.value["concreteness"] <= 100
        kept = score.value["concrete"] == 1 and score.value["relevant"] == 0
        assert score.value["kept"] == kept == (score.answer == "kept")
    funnel, kept = read_selection(log)
    assert funnel.candidates == 3 == funnel.kept + sum(funnel.rejected.values())
    assert [one.index for one in kept] == sorted(i for i, s in rows.items() if s.value["kept"])

    # Other thresholds need neither the model nor the judge.
    strict = inspect_score(log, selection(min_concreteness=100), action="overwrite", display="none")
    assert all(s.scores["selection"].value["kept"] == 0 for s in strict.samples)

    # The same test put together by hand, position 0 left in: there most latents fire.
    [every] = inspect_eval(
        Task(
            dataset=[
                Sample(input="?", metadata={"latent": one.index, "label": one.label})
                for one in mixed
            ],
            solver=survey_candidates(
                [one.index for one in mixed],
                [one.label for one in mixed],
                [prompts()[0].model_dump()],
            ),
            scorer=selection(),
        ),
        model="esr/smollm2-135m",
        model_args={"device": "cpu", "skip_first": 0},
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    active = [s.scores["selection"].value["relevant"] for s in every.samples]
    assert sum(active) > sum(score.value["relevant"] for score in rows.values())
    named = {s.scores["selection"].metadata["prompt"] for s in every.samples}
    assert named - {None} and named - {None} <= set(topics)


@pytest.mark.model
def test_the_command_writes_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "kept.csv"
    args = ["latents", "select", "smollm2-135m", "-o", str(out), "--wanted", "4", "--seed", "3"]
    args += ["--min-concreteness", "20", "-M", "device=cpu", "--log-dir", str(tmp_path / "logs")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    indices = [int(row["index_in_sae"]) for row in rows]
    assert len(rows) == 4 and indices == sorted(indices)
    available = {
        latent.index: latent.label for latent in load_latents(find_subject("smollm2-135m"))
    }
    assert all(available[int(row["index_in_sae"])] == row["label"] for row in rows)
    assert load_latents(find_subject("smollm2-135m"), str(out))
    assert "drawn as candidates" in done.output and "44" in done.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--rule", "some"], "--rule some"),
        (["--min-concreteness", "650"], "--min-concreteness 650"),
        (["--latents", "none.csv"], "as --latents."),
        (["-o", "."], "--out . is refused: it is a folder"),
        (["--wanted", "500"], "--wanted 500, but there are 44"),
    ],
)
def test_mistakes_are_told_before_anything_loads(tmp_path, args, sentence, monkeypatch):
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path))
    out = tmp_path / "kept.csv"
    done = CliRunner().invoke(app, ["latents", "select", "smollm2-135m", "-o", str(out), *args])
    assert done.exit_code != 0
    said = done.output + str(done.exception)
    assert sentence in " ".join(said.split())
    assert not out.exists() and not list(Path(tmp_path).glob("*.eval"))
