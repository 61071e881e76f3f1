"""The command `esr-eval`: help, tables, calibration end to end, mistakes as one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import LABELS, install
from typer.testing import CliRunner, Result

from esr_eval._util.cache import CACHE_ENV
from esr_eval.calibration.store import load_bundle
from esr_eval.cli import app
from esr_eval.subjects import subjects

PRIOR = '{"prior_mean": 20, "prior_std": 10, "lower": 0, "upper": 50, "rounds": 3}'


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


@pytest.fixture
def labels(run_in: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(CACHE_ENV, str(run_in / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    (run_in / "labels.csv").write_text(LABELS)
    return "labels.csv"


def test_help_names_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("subjects", "calibrate", "summary"):
        assert command in result.output
        assert run(command, "--help").exit_code == 0


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'inspect_ai', 'pandas', 'scipy'}"
    code = f"import sys, esr_eval.cli; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_analysis_loads_no_torch() -> None:
    modules = "esr_eval.report.summary, esr_eval.cli.subjects, esr_eval.cli.calibrate"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_subjects_lists_all_with_their_memory() -> None:
    result = run("subjects")
    assert result.exit_code == 0
    for name in subjects():
        assert name in result.output
    assert "131.5" in result.output and "This machine" in result.output


def test_calibrate_keeps_shows_and_exports_the_strengths(
    labels: str, run_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = install(monkeypatch)
    args = ["calibrate", "llama-8b", "--latents", labels, "--grader", "sim-judge/noisy"]
    args += ["-T", f"prior={PRIOR}", "-T", "check_samples=2", "-M", "batch_size=4"]
    result = run(*args, "--export", "strengths.json")
    assert result.exit_code == 0, result.output
    assert "oceans" in result.output and "sim-judge/noisy" in result.output
    records = load_bundle(run_in / "strengths.json")
    assert {record.latent for record in records.values()} == {1, 2}
    assert {record.generations for record in records.values()} == {3 * 1 + 2}
    assert json.loads((run_in / "strengths.json").read_text())[0]["latent"] == 1

    made = len(subject.calls)
    again = run(*args)
    assert again.exit_code == 0 and "cached" in again.output
    assert len(subject.calls) == made


def test_calibrate_interrupted_says_how_to_go_on(
    labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = install(monkeypatch)
    subject.fail_after = 5
    args = ["calibrate", "llama-8b", "--latents", labels, "--grader", "sim-judge/noisy"]
    result = run(*args, "-T", f"prior={PRIOR}")
    assert result.exit_code == 1
    assert "the same command goes on from here" in result.output
    assert "the power went off" in result.output
    assert "Traceback" not in result.output.rpartition("Error: ")[2]
    subject.fail_after = None
    assert run(*args, "-T", f"prior={PRIOR}").exit_code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["calibrate", "lama-8b"], "Did you mean llama-8b?"),
        (["calibrate", "llama-8b", "-M", "nonsense=1"], "has no argument -M nonsense="),
        (["calibrate", "llama-8b", "-T", "prior"], "not of the form NAME=VALUE"),
        (["summary", "none.eval"], "There is no log none.eval"),
    ],
)
def test_mistakes_are_one_sentence(labels: str, args: list[str], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output
