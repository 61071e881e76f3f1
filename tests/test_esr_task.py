"""The main task end to end on the embedded subject, through Inspect's own commands."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import GenerateConfig, get_model

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.spec import Steering, fingerprint

pytestmark = pytest.mark.model
ROOT = Path(__file__).resolve().parent.parent
INSPECT = str(Path(sys.executable).parent / "inspect")
SMALL = {"n_latents": 3, "trials_per_latent": 2, "seed": 5}


def run(log_dir, model="esr/smollm2-135m", **task_args):
    [log] = inspect_eval(
        "esr_eval/esr",
        model=model,
        model_args={"device": "cpu"},
        task_args=SMALL | task_args,
        max_tokens=32,
        log_dir=str(log_dir),
        display="none",
    )
    return log


def command(*args, cwd, **env):
    ours = {
        k: v for k, v in os.environ.items() if k not in ("ANTHROPIC_API_KEY", "INSPECT_EVAL_MODEL")
    }
    return subprocess.run(
        [INSPECT, *args],
        cwd=cwd,
        env=ours | {"INSPECT_DISPLAY": "plain"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def texts(log):
    return {sample.id: sample.output.completion for sample in log.samples}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return {steering: run(folder, steering=steering) for steering in (True, False)}


def metric(log, name):
    return log.results.scores[0].metrics[name].value


def test_both_conditions_succeed_and_pair_by_id(logs):
    steered, unsteered = logs[True], logs[False]
    assert steered.status == unsteered.status == "success"
    assert set(texts(steered)) == set(texts(unsteered))
    assert len(texts(steered)) == 6
    assert texts(steered) != texts(unsteered)
    for log in logs.values():
        assert metric(log, "errored") == metric(log, "unscored") == 0
        assert 0 <= metric(log, "first_score") <= 100
        assert log.eval.metadata["judge"] == "esr-judge/offline"
        assert log.eval.metadata["paper"] == "arXiv:2602.06941"
    assert metric(steered, "first_score") < metric(unsteered, "first_score")


def test_a_boost_that_ends_leaves_the_beginning_as_it_was(logs, tmp_path):
    ended = run(tmp_path, until_token=6)
    whole = texts(logs[True])
    assert ended.eval.metadata["condition"] == "main, boost off after 6 tokens"
    assert texts(ended) != whole
    for sample in ended.samples:
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        [edit] = Steering.from_extra_body(event.config.extra_body).edits
        assert edit.until_token == 6
        # The first tokens are chosen with the boost on, as in the whole run.
        assert sample.output.completion[:8] == whole[sample.id][:8]
    with pytest.raises(EsrError, match="until_token=0 is refused"):
        run(tmp_path, until_token=0)


def test_the_log_alone_reproduces_a_sample(logs):
    """Prompt, settings and spec are read from the log's JSON, nothing else."""
    for log in logs.values():
        sample = read_eval_log(log.location).samples[2]
        [event] = [e for e in sample.events if e.event == "model" and e.model.startswith("esr/")]
        config = GenerateConfig.model_validate_json(event.config.model_dump_json())
        spec = Steering.from_extra_body(config.extra_body)
        assert sample.output.metadata["fingerprint"] == fingerprint(spec)
        assert spec.runtime.sae is not None and spec.runtime.steering_layer == 14
        import anyio

        model = get_model(log.eval.model, **log.eval.model_args)
        again = anyio.run(lambda m=model, e=event, c=config: m.generate(e.input, config=c))
        assert again.completion == sample.output.completion


def test_a_sample_shows_latent_label_and_strength_and_its_score_can_be_read(logs):
    for steering, log in logs.items():
        for sample in log.samples:
            trial = Trial.model_validate(sample.metadata)
            assert (trial.strength > 0) == steering
            assert sample.output.metadata["edited_positions"] == (
                sample.output.usage.total_tokens
                - (2 if sample.output.stop_reason == "max_tokens" else 1)
                if steering
                else 0
            )
            score = sample.scores["attempts"]
            for shown in (trial.label, "esr-judge/offline"):
                assert shown in score.explanation


def test_metrics_are_the_means_of_the_samples_values(logs):
    for log in logs.values():
        for key in ("multi_attempt", "confirmed", "esr", "first_score"):
            values = [s.scores["attempts"].value[key] for s in log.samples]
            assert metric(log, key) == pytest.approx(sum(values) / len(values))


def test_the_same_arguments_give_the_same_samples_whatever_the_batch(logs, tmp_path):
    [log] = inspect_eval(
        "esr_eval/esr",
        model="esr/smollm2-135m",
        model_args={"device": "cpu", "batch_size": 2},
        task_args=SMALL,
        max_tokens=32,
        log_dir=str(tmp_path),
        display="none",
    )
    assert texts(log) == texts(logs[True])
    values = {s.id: s.scores["attempts"].value for s in log.samples}
    want = {s.id: s.scores["attempts"].value for s in logs[True].samples}
    assert json.dumps(values, sort_keys=True) == json.dumps(want, sort_keys=True)


def test_rescoring_a_stored_log_loads_no_subject(logs, tmp_path):
    elsewhere = read_eval_log(logs[True].location)
    elsewhere.eval.model = "esr/llama-70b"  # whose weights nobody has here
    write_eval_log(elsewhere, str(tmp_path / "elsewhere.eval"))
    done = command(
        "score",
        str(tmp_path / "elsewhere.eval"),
        "--scorer",
        "esr_eval/attempts",
        "--model-role",
        "grader=esr-judge/offline",
        "--action",
        "append",
        "--output-file",
        str(tmp_path / "rescored.eval"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_eval_log(str(tmp_path / "rescored.eval"))
    names = {name for sample in log.samples for name in sample.scores}
    assert names == {"attempts", "attempts1"}
    for sample in log.samples:
        again = sample.scores["attempts1"]
        assert json.dumps(again.value) == json.dumps(sample.scores["attempts"].value)
        assert again.metadata["judge"] == "esr-judge/offline"


def test_an_interrupted_run_continues_with_eval_retry(logs, tmp_path):
    args = [
        INSPECT,
        "eval",
        "esr_eval/esr",
        "--model",
        "esr/smollm2-135m",
        "-M",
        "device=cpu",
    ]
    args += ["-M", "batch_size=1", "--max-tokens", "32", "--log-dir", str(tmp_path)]
    for name, value in SMALL.items():
        args += ["-T", f"{name}={value}"]
    env = os.environ | {"INSPECT_DISPLAY": "plain"}
    running = subprocess.Popen(
        args,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that run in the background inherit an interrupt that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in running.stdout:
        done = re.search(r"Samples:\s+(\d+)/\s*6", line)
        if done and 1 <= int(done[1]) < 6:
            running.send_signal(signal.SIGINT)
            break
    running.communicate(timeout=120)
    [interrupted] = tmp_path.glob("*.eval")
    before = read_eval_log(str(interrupted))
    assert before.status == "cancelled"
    assert 0 < len([s for s in before.samples or [] if s.error is None]) < 6

    retried = command(
        "eval-retry", str(interrupted), "--log-dir", str(tmp_path / "r"), cwd=tmp_path
    )
    assert retried.returncode == 0, retried.stdout + retried.stderr
    [path] = (tmp_path / "r").glob("*.eval")
    log = read_eval_log(str(path))
    assert log.status == "success"
    assert texts(log) == texts(logs[True])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--model", "esr/llama70b"], "There is no subject 'llama70b'"),
        (["--model", "esr/smollm2-135m", "-M", "steering_layer=30"], "layers 0 to 29"),
        (["--model", "esr/smollm2-135m", "-T", "latents=999999"], "999999"),
        (["--model", "esr/smollm2-135m", "-T", "strength=much"], "strength=much"),
        (["--model", "esr/gemma-2b", "-T", "strength=9"], "ANTHROPIC_API_KEY"),
        (["--model", "mockllm/model"], "--model esr/NAME"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(tmp_path, args, sentence):
    done = command("eval", "tasks/esr.py", *args, "--log-dir", str(tmp_path), cwd=ROOT)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert sentence in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.eval"))
