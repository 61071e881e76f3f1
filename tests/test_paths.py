"""Relative paths mean what they mean in the user's shell, though Inspect runs tasks elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

from esr_eval._util import paths
from esr_eval._util.paths import given_path
from esr_eval.subjects import embedded_path

ROOT = Path(__file__).resolve().parent.parent


def test_a_path_from_where_the_user_stood(tmp_path, monkeypatch):
    stood, now = tmp_path / "stood", tmp_path / "now"
    for folder in (stood, now):
        folder.mkdir()
        (folder / "both").touch()
    (stood / "there").touch()
    monkeypatch.setattr(paths, "STARTED_IN", stood)
    monkeypatch.chdir(now)
    assert given_path("there") == str(stood / "there")
    assert given_path("both") == "both"
    assert given_path("neither") == "neither"
    assert given_path(str(stood / "there")) == str(stood / "there")
    for url in ("s3://bucket/there", "file:///there"):
        assert given_path(url) == url


@pytest.mark.model
def test_task_files_take_relative_paths(tmp_path):
    """Labels, a log to replay and an adapter, named as a user in `tmp_path` would."""

    def inspect(task, *args):
        command = [sys.executable, "-m", "inspect_ai", "eval", f"tasks/{task}", *args]
        fixed = ["--max-tokens", "2", "--limit", "1", "--display", "none", "-M", "device=cpu"]
        done = subprocess.run(
            [*command, *fixed], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    (tmp_path / "labels.csv").write_text("index_in_sae,label\n795,hair\n")
    shutil.copytree(embedded_path("embedded:smollm2-135m-esr"), tmp_path / "adapter")
    subject = ["--model", "esr/smollm2-135m"]
    inspect("esr.py", *subject, "-T", "latents=labels.csv", "-T", "strength=40", "--log-dir", "one")
    [log] = (tmp_path / "one").glob("*.eval")
    replay = ["-T", f"replay=one/{log.name}", "-T", "strength=replay", "-M", "adapter=adapter"]
    inspect("finetuned.py", *subject, *replay, "--log-dir", "two")
    [again] = (tmp_path / "two").glob("*.eval")
    trials = [read_eval_log(str(path)).samples[0].metadata for path in (log, again)]
    assert trials[0] == trials[1] and trials[0]["label"] == "hair"
