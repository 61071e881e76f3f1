"""The package as others install it: from a wheel, in a folder that is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The unpacked wheel, first on the path of a fresh interpreter."""
    source = tmp_path_factory.mktemp("source")
    # Inspect takes a package for installed where its path says so.
    site = tmp_path_factory.mktemp("wheel") / "site-packages"
    for name in ("esr_eval", "tasks", "scorers"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "-o",
        str(site),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    [wheel] = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(site)
    assert names == {"esr_eval", wheel.name.split("-py3")[0] + ".dist-info"}
    return site


def run(installed, cwd, *args):
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed), "INSPECT_DISPLAY": "plain"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.model
def test_the_wheel_alone_runs_the_task_by_its_registry_name(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import esr_eval.tasks as t; print(t.__file__)")
    assert where.stdout.startswith(str(installed))
    args = ["eval", "esr_eval/esr", "--model", "esr/smollm2-135m", "--max-tokens", "8"]
    args += ["-T", "n_latents=2", "-T", "trials_per_latent=1", "--log-dir", str(tmp_path)]
    done = run(installed, tmp_path, "-m", "inspect_ai", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.glob("*.eval")
    log = read_eval_log(str(path))
    assert log.status == "success" and len(log.samples) == 2
    assert log.eval.task_registry_name == "esr_eval/esr"
    assert log.eval.packages["esr-eval"] == version("esr-eval")


def test_the_passages_for_judges_are_in_the_wheel(installed, tmp_path):
    code = "from esr_eval.data.passages import read_passages; print(len(read_passages()))"
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0 and int(done.stdout) >= 12, done.stderr


def test_the_command_line_works_from_the_wheel(installed, tmp_path):
    done = run(installed, tmp_path, "-c", "from esr_eval.cli import app; app()", "subjects")
    assert done.returncode == 0, done.stderr
    assert "llama-70b" in done.stdout
