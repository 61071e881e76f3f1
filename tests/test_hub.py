"""A name, and nothing else: labels, latents and strengths are found, on an empty machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_stand_in import BUILDERS, labels, serving
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from sae_lens import StandardSAE, StandardSAEConfig

from esr_eval.data.labels import write_labels

ROOT = Path(__file__).parents[1]
SMALL = {"n_latents": 2, "trials_per_latent": 2, "prior": {"rounds": 3, "max_tokens": 12}}
BEYOND: dict[str, dict[str, Any]] = {
    "thoughts": {"n_latents": 2, "trials_per_latent": 1},
    "pushes": {"n_prompts": 1, "n_random": 1},
}
LONGEST = 240.0


class Call(NamedTuple):
    """A load, or a question that was answered."""

    kind: str
    what: str
    time: float


class Machine:
    """An empty machine before the stand-in hub, and the command `inspect` on it.

    Attributes:
        folder: Where everything lies that runs leave.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self._runs = 0

    def start(self, *command: str, **args: Any) -> tuple[subprocess.Popen[bytes], Path]:
        """Start `inspect`; also the file in which its calls are noted."""
        self._runs += 1
        calls = self.folder / f"calls-{self._runs}.jsonl"
        calls.touch()
        left_out = ("HF_HUB_OFFLINE", "INSPECT_EVAL_MODEL", "ANTHROPIC_API_KEY")
        env = {name: value for name, value in os.environ.items() if name not in left_out} | {
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "x",
            "ESR_EVAL_LABELS_URL": f"{self.url}/s3",
            "ESR_EVAL_CACHE": str(self.folder / "esr"),
            "INSPECT_CACHE_DIR": str(self.folder / "requests"),
            "INSPECT_LOG_DIR": str(self.folder / "logs"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "NO_PROXY": "127.0.0.1",
            "CALLS": str(calls),
            "OMP_NUM_THREADS": "1",
        }
        given = [f"-T{name}={json.dumps(value)}" for name, value in args.items()]
        with (self.folder / f"out-{self._runs}.txt").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/counted_inspect.py"), *command, *given],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return process, calls

    def run(self, *command: str, **args: Any) -> list[Call]:
        """Run `inspect` to its end; what it loaded and asked."""
        process, calls = self.start(*command, **args)
        try:
            code = process.wait(LONGEST)
        finally:
            process.kill()
        assert code == 0, self.said()
        return noted(calls)

    def killed(self, at: str, count: int, *command: str, **args: Any) -> list[Call]:
        """Kill a run without a warning once so many files are there.

        Args:
            at: Pattern of the files, below `folder`.
            count: How many.
            command: The run.
            args: Of the task.
        """
        process, calls = self.start(*command, **args)
        until = time.monotonic() + LONGEST
        while time.monotonic() < until and process.poll() is None:
            if len(list(self.folder.glob(at))) >= count:
                break
            time.sleep(0.02)
        # An answer is noted a moment before Inspect keeps it: not in that moment.
        calm = time.monotonic() + 10
        while time.monotonic() < calm and time.time() - calls.stat().st_mtime < 0.2:
            time.sleep(0.02)
        still_running = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert still_running, self.said()
        return noted(calls)

    def said(self) -> str:
        """The last run's output."""
        return (self.folder / f"out-{self._runs}.txt").read_text("utf-8", "replace")[-3000:]

    def log(self) -> EvalLog:
        """The newest log, which must be a success."""
        newest = max(list_eval_logs(str(self.folder / "logs")), key=lambda info: info.mtime or 0)
        log = read_eval_log(newest)
        wrong = [sample.error.message for sample in log.samples or [] if sample.error]
        assert log.status == "success", (log.error, wrong)
        return log


def noted(calls: Path) -> list[Call]:
    lines = calls.read_text(encoding="utf-8").splitlines()
    return [Call(*json.loads(line)) for line in lines]


def kinds(calls: list[Call]) -> Counter[str]:
    return Counter(call.kind for call in calls)


def asked_twice(*runs: list[Call]) -> list[str]:
    every = Counter(c.what for calls in runs for c in calls if c.kind != "load")
    return [what for what, times in every.items() if times > 1]


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    root = tmp_path / "hub"
    BUILDERS[request.param](root)
    with serving(root) as url:
        (tmp_path / "machine").mkdir()
        yield Machine(tmp_path / "machine", url)
    # pytest keeps the folders of the last runs, and an SAE is large.
    shutil.rmtree(tmp_path)


def bare(subject: str, *more: str) -> list[str]:
    judge = "--model-role=grader=esr-judge/offline"
    command = ["eval", "tasks/esr.py", f"--model=esr/{subject}", judge, "--max-tokens=12"]
    return [*command, "-Mdevice=cpu", *more]


def check_log(log: EvalLog, layer: int) -> None:
    """Labels fetched, latents chosen, strengths calibrated, trials scored."""
    assert log.eval.metadata is not None and log.samples and log.results
    assert log.eval.metadata["labels_source"]["labels"] == len(labels())
    for sample in log.samples:
        about = sample.metadata
        assert about["label"] == labels()[about["latent"]]
        assert about["latent"] % 5 and about["latent"] % 4  # silent and concrete
        assert about["strength_found"] == "calibrated" and about["strength"] > 0
        assert about["share_of_norm"] > 0 and about["residual_norm"] > 0
        assert f"explained_variance_layer_{layer}" in about
        assert "pending" not in about and sample.scores
    assert len({sample.metadata["latent"] for sample in log.samples}) == SMALL["n_latents"]
    told = [e.message.message for s in log.samples for e in s.events if e.event == "logger"]
    assert sum(message.startswith("Loaded ") for message in told) <= 1  # 0: by a retried trial


@pytest.mark.model
@pytest.mark.parametrize("machine", ["gemma-2b"], indirect=True)
def test_a_name_is_enough_and_a_killed_run_goes_on_and_the_next_starts_at_once(
    machine: Machine,
) -> None:
    command = bare("gemma-2b")
    first = machine.killed("esr/strengths/*.partial.json", 1, *command, **SMALL)
    second = machine.run(*command, **SMALL)
    check_log(machine.log(), 16)
    assert asked_twice(first, second) == []
    assert kinds(first)["load"] == kinds(second)["load"] == 1
    trials = 4
    searched = 2 * (3 + 5)
    answers = 16
    total = kinds(first) + kinds(second)
    assert total["subject"] == answers + searched + trials

    third = machine.run(*command, **SMALL)
    check_log(machine.log(), 16)
    assert kinds(third)["load"] == 1 and kinds(third)["subject"] == trials
    assert kinds(third)["judge"] <= trials
    loaded, *later = [call.time for call in third if call.kind in ("load", "subject")]
    assert later[0] - loaded < 15


@pytest.mark.hub
@pytest.mark.model
@pytest.mark.parametrize("machine", ["gemma-2b"], indirect=True)
def test_a_run_killed_in_its_trials_is_retried_with_what_is_missing(machine: Machine) -> None:
    args = SMALL | {"trials_per_latent": 8}
    command = bare("gemma-2b", "--max-connections=2", "--log-buffer=1")
    # A finished strength: its latent's trials are under way.
    first = machine.killed("esr/strengths/[0-9a-f]*[0-9a-f].json", 2, *command, **args)
    [log] = list_eval_logs(str(machine.folder / "logs"))
    second = machine.run("eval-retry", str(log.name))
    check_log(machine.log(), 16)
    repeated = asked_twice(first, second)
    assert len(repeated) <= 2 * 2  # trials that were under way, and their verdicts
    assert kinds(second)["load"] == 1


@pytest.mark.hub
@pytest.mark.model
@pytest.mark.parametrize(
    ("machine", "command", "layer"),
    [
        ("llama-8b", bare("llama-8b"), 19),
        ("gemma-3-4b", bare("gemma-3-4b"), 22),
    ],
    indirect=["machine"],
    ids=["llama-8b", "gemma-3-4b"],
)
def test_a_name_is_enough_for_other_families(
    machine: Machine, command: list[str], layer: int
) -> None:
    calls = machine.run(*command, **SMALL)
    check_log(machine.log(), layer)
    assert kinds(calls)["load"] == 1 and asked_twice(calls) == []


@pytest.mark.hub
@pytest.mark.model
@pytest.mark.parametrize("machine", ["gemma-2b"], indirect=True)
def test_an_id_that_no_list_knows_is_calibrated_from_a_folder_and_a_file(
    machine: Machine, tmp_path: Path
) -> None:
    """No strength, prior or number is given: the search begins at a share of the norm."""
    hub = tmp_path / "hub"
    (hub / "nobody").mkdir()
    shutil.move(hub / "google/gemma-2-2b-it", hub / "nobody/knows-it")
    config = StandardSAEConfig(d_in=2304, d_sae=64, dtype="float32", device="cpu")
    config.metadata.hook_name = "blocks.10.hook_resid_post"
    StandardSAE(config).save_model(tmp_path / "sae")
    write_labels(tmp_path / "labels.csv", [(3, "horses"), (7, "boats in winter")])
    command = bare("nobody/knows-it", f"-Msae_release={tmp_path}/sae", "-Msteering_layer=10")
    args = {"latents": str(tmp_path / "labels.csv"), "trials_per_latent": 1}
    calls = machine.run(*command, "-Mfeature_layer=10", *(f"-T{k}={v}" for k, v in args.items()))
    samples = machine.log().samples or []
    assert {sample.metadata["latent"] for sample in samples} == {3, 7}
    for sample in samples:
        about = sample.metadata
        assert about["strength_found"] == "calibrated"
        assert 0 < about["share_of_norm"] < 2 and "explained_variance_layer_10" in about
    assert kinds(calls)["load"] == 1 and asked_twice(calls) == []


@pytest.mark.hub
@pytest.mark.model
@pytest.mark.parametrize("machine", ["gemma-2b"], indirect=True)
def test_a_name_is_enough_beyond_the_paper(machine: Machine) -> None:
    """Latents to inject are chosen, and directions to push along are taken, in the run itself."""
    command = bare("gemma-2b")[2:]
    calls = machine.run("eval", "tasks/injected_thought.py", *command, **BEYOND["thoughts"])
    samples = machine.log().samples or []
    # The thought and three unrelated questions, with each of two doses and without.
    assert len(samples) == 2 * 4 * 3
    assert {sample.metadata["label"] for sample in samples} <= set(labels().values())
    assert not any(sample.metadata.get("pending") for sample in samples)
    assert kinds(calls)["load"] == 1

    calls = machine.run("eval", "tasks/protective.py", *command, **BEYOND["pushes"])
    samples = machine.log().samples or []
    assert len(samples) == 2 * 4 + 2 * 6
    for sample in samples:
        pushed = sample.metadata.get("way") is not None
        assert (sample.output.metadata or {})["edited_positions"] > 0 or not pushed
    assert kinds(calls)["load"] == 1
    assert len(list((machine.folder / "esr/directions").iterdir())) == 1
