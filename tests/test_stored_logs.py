"""Logs of every task, written by an earlier version, are still read; and names agree."""

import csv
import shutil
from pathlib import Path

import pytest
from evals import embedded
from inspect_ai.log import edit_score, read_eval_log
from inspect_ai.scorer import ScoreEdit
from typer.testing import CliRunner

from esr_eval import tasks
from esr_eval.cli import app
from esr_eval.data.experiments import EXPERIMENTS, current_id
from esr_eval.detectors.discovery import find_detectors
from esr_eval.episodes.traces import read_traces
from esr_eval.logs.conditions import read_condition
from esr_eval.logs.replay import read_responses, replay_log
from esr_eval.logs.stored import read_stored
from esr_eval.subjects import find_subject

LOGS = Path(__file__).parent / "data" / "logs"
BASELINE = Path(__file__).resolve().parent.parent / "logs" / "baseline"
IDS = [experiment.id for experiment in EXPERIMENTS]
UNLIKE_TRIALS = {"detectors", "activations", "cross_judge"}
"""Logs whose samples hold no attempts, which summary leaves out."""


def told(*args):
    result = CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_scores_of_an_earlier_versions_log_can_still_be_changed(tmp_path):
    log = read_eval_log(str(next(BASELINE.glob("*.eval"))))
    assert len(log.results.scores) > 10
    edit_score(
        log,
        log.samples[0].id,
        "attempts",
        ScoreEdit(value={**log.samples[0].scores["attempts"].value, "first_score": 100.0}),
    )
    before, after = (
        next(score for score in one.results.scores if score.name == "first_score")
        for one in (read_eval_log(log.location), log)
    )
    assert after.metrics.keys() == before.metrics.keys()
    assert after.metrics["mean"].value > before.metrics["mean"].value


@pytest.mark.parametrize("name", IDS)
def test_a_stored_log_of_every_experiment_is_read(name):
    log = read_stored(str(LOGS / f"{name}.eval"))
    assert log.experiment.id == name
    assert log.header.status == "success"
    assert len(log.samples) == log.planned == (4 if name in ("boost_sweep", "activations") else 2)


def test_the_report_knows_every_stored_experiment(tmp_path):
    output = told("report", LOGS, "-o", tmp_path / "report")
    left_out = [line for line in output.splitlines() if "Left out" in line]
    assert len(left_out) == 1 and "calibrate.eval" in left_out[0]
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    for experiment in EXPERIMENTS:
        assert experiment.question in page
        assert f"inspect eval esr_eval/{experiment.task} --model" not in page
    with (tmp_path / "report" / "tables" / "conditions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["experiment"] for row in rows} == set(IDS) - UNLIKE_TRIALS
    # What each log's own results say is what the table says.
    for row in rows:
        if row["metric"] != "first_score" or row["experiment"] == "boost_sweep":
            continue
        scores = read_eval_log(str(LOGS / row["log"]), header_only=True).results.scores
        [own] = [score for score in scores if score.name == "first_score"]
        [mean] = [metric.value for name, metric in own.metrics.items() if name.endswith("mean")]
        assert float(row["value"]) == pytest.approx(mean)


def test_summary_reads_stored_logs(tmp_path):
    told("summary", LOGS, "--csv", tmp_path / "table.csv")
    assert len(list(csv.reader((tmp_path / "table.csv").open(encoding="utf-8")))) > 1
    for name in set(IDS) - UNLIKE_TRIALS:
        assert "first" in told("summary", LOGS / f"{name}.eval"), name


def test_a_log_of_a_renamed_experiment_compares_with_itself_under_the_new_name(tmp_path):
    for name in ("esr", "meta_prompt", "prefill_control", "held_out"):
        shutil.copy(LOGS / f"{name}.eval", tmp_path)
    old = read_eval_log(str(LOGS / "esr.eval"))
    assert old.eval.metadata["experiment_id"] == "main"
    output = told("compare", tmp_path, tmp_path, "--same-trials", "--worse", "all=either")
    for name in ("main", "meta_prompt", "prefill_control", "held_out"):
        assert f"smollm2-135m, {name}" in output
    assert output.count("no change") == 4 * 7


def test_stored_activations_are_read():
    found = read_traces(str(LOGS / "activations.eval"))
    assert [trace.steered for trace in found.traces].count(True) == 2
    assert found.missing == found.errored == 0
    report = find_detectors(LOGS / "detectors.eval")
    assert report.pairs == 2 and report.sets["separability"].detectors


@pytest.mark.model
def test_a_stored_log_is_replayed_trial_by_trial(tmp_path):
    stored = LOGS / "esr.eval"
    again = embedded("esr", tmp_path, replay=str(stored), max_tokens=24)
    assert replay_log(again.location).planned == replay_log(str(stored)).planned
    assert again.eval.metadata["experiment_id"] == "esr"
    old, new = (
        {r.trial: r.response for r in read_responses(str(p))[0]} for p in (stored, again.location)
    )
    assert old.keys() == new.keys()
    # Rounding is the machine's own, and moves later tokens first.
    assert all(new[trial].split()[:3] == response.split()[:3] for trial, response in old.items())


# Names


def test_a_file_its_task_and_its_experiment_are_one_word():
    for experiment in EXPERIMENTS:
        task, _, argument = experiment.task.partition(" ")
        assert getattr(tasks, task).__name__ == task
        assert (Path(__file__).parents[1] / "tasks" / f"{task}.py").is_file()
        # A half that an argument tells apart has a name of its own.
        assert argument or experiment.id == task


def test_every_experiment_is_called_as_it_is_today():
    assert {current_id(name) for name in IDS} == set(IDS)
    renamed = {"main": "esr", "meta_prompts": "meta_prompt", "prefill": "prefill_control"}
    assert {name: current_id(name) for name in renamed} == renamed


def test_the_runtime_of_a_log_of_before_equals_todays():
    """Fields that came later have their defaults there: such logs still compare."""
    [first, *_] = sorted(BASELINE.glob("*.eval"))
    told = read_condition(first).log.settings["runtime"]
    runtime = find_subject("smollm2-135m").runtime()
    assert told == runtime.model_dump(mode="json", exclude_none=True)
    assert "date" in told
