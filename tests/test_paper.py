"""The whole paper on the embedded subject, very small: interrupted, resumed, reported."""

import re
import shutil

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.data.experiments import EXPERIMENTS
from esr_eval.paper import run as paper_run
from esr_eval.paper import steps as paper_steps
from esr_eval.paper.run import STEP

pytestmark = pytest.mark.model

MICRO = paper_steps.Scale(2, 1, (2, 2, 1), 1, 1, 1, 1, 30, 2, 2)
VARYING = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d[\w-]+_(?P<task>[a-z-]+)_\w+")


def paper(logs, *more):
    arguments = ["paper", "--scale", "tiny", "--log-dir", str(logs), "--max-tokens", "12", *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=True)


def done_in(logs):
    """Steps that have ended, by the logs' own words."""
    headers = [read_eval_log(info, header_only=True) for info in list_eval_logs(str(logs))]
    return {
        log.eval.metadata[STEP]: log.location.removeprefix("file://")
        for log in headers
        if log.status == "success"
    }


def generated_in(log):
    """Responses that the subject wrote, by the events of a log."""
    stored = read_eval_log(log)
    return sum(
        event.event == "model" and event.model.startswith("esr/")
        for sample in stored.samples
        for event in sample.events
    )


def report_of(logs):
    """The report's files, the names of logs taken out, which bear the time they were made."""
    files = sorted(path for path in (logs / "report").rglob("*") if path.is_file())
    assert files
    return {
        str(path.relative_to(logs)): VARYING.sub(r"\g<task>", path.read_text("utf-8"))
        for path in files
    }


def test_interrupted_anywhere_the_paper_goes_on_and_reports_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(paper_steps.SCALES, "tiny", MICRO)
    logs = tmp_path / "whole"
    eval_set, ran = paper_run.eval_set, []

    def interrupted(task, **settings):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(task)
        return eval_set(task, **settings)

    monkeypatch.setattr(paper_run, "eval_set", interrupted)
    plan_steps, planned = paper_steps.plan_steps, []

    def plan(chosen):
        planned[:] = plan_steps(chosen)
        return planned

    monkeypatch.setattr(paper_steps, "plan_steps", plan)
    assert paper(logs).exit_code != 0
    first = done_in(logs)
    assert len(first) == 5 and not (logs / "report").exists()

    again = []
    monkeypatch.setattr(
        paper_run, "eval_set", lambda task, **more: (again.append(task), eval_set(task, **more))[1]
    )
    result = paper(logs)
    assert result.exit_code == 0, result.output
    done = done_in(logs)
    # What had ended was not run again, and its logs are the same files.
    assert len(again) == len(done) - len(first)
    assert {key: done[key] for key in first} == first
    page = (logs / "report" / "index.html").read_text("utf-8")
    for experiment in EXPERIMENTS:
        assert experiment.question in page
    # The tuned twin is the subject, its base's main run stands beside it, and the end says what
    # so few trials can show.
    assert {"main", "main_base", "prefill_ablation", "prefill_random"} <= set(done)
    subjects = {key: read_eval_log(log, header_only=True).eval.model for key, log in done.items()}
    assert subjects["main"] == subjects["ablation"] == "esr/smollm2-135m-esr"
    assert subjects["main_base"] == subjects["vectors"] == "esr/smollm2-135m"
    assert "what lies between they cannot show" in " ".join(result.output.split())
    assert "What these trials can show" in page

    # The estimate is of what was generated, step by step.
    steps = {step.key: step for step in planned}
    assert set(steps) == set(done)
    for key, log in done.items():
        assert generated_in(log) == steps[key].generations, key

    # The same run with its last logs lost: they are made again, and the report does not change.
    other = tmp_path / "resumed"
    shutil.copytree(logs, other, ignore=shutil.ignore_patterns("report"))
    for key in ("held_out", "meta_resist_manipulation", "prefill", "cross_judge"):
        (other / done[key].rpartition("/")[2]).unlink()
    assert paper(other).exit_code == 0
    assert report_of(other) == report_of(logs)

    # A run with other settings does not take these logs for its own.
    mixed = paper(other, "--seed", "1")
    assert mixed.exit_code != 0 and "holds another run (other seed)" in " ".join(
        mixed.output.split()
    )


def test_a_dry_run_only_tells(tmp_path):
    result = paper(tmp_path / "logs", "--dry-run")
    assert result.exit_code == 0 and "to do" in result.output
    assert not (tmp_path / "logs").exists()
