"""All that stops a run is told at once: by the run itself, and by `esr-eval check`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.model import GenerateConfig, get_model
from safetensors.numpy import save_file
from typer.testing import CliRunner

from esr_eval.backends.local import LocalBackend
from esr_eval.checks import Wanted, every_check, open_judge
from esr_eval.cli import app
from esr_eval.errors import EsrError
from esr_eval.provider import checks
from esr_eval.provider.checks import Check, check_versions, look, raise_stops
from esr_eval.tasks.esr import esr


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def small_machine(monkeypatch):
    monkeypatch.setattr("esr_eval.model.weights.gpu_memory_gib", list)
    monkeypatch.setattr("esr_eval.model.weights.main_memory_gib", lambda: 4.0)


def by_name(found):
    return {one.name: one for one in found}


def test_one_stop_alone_is_told_in_its_own_sentence():
    with pytest.raises(EsrError) as told:
        raise_stops([Check("memory", "ok", "enough"), Check("judge", "stop", "No key.")])
    assert str(told.value) == "No key."
    raise_stops([Check("memory", "ok", "enough"), Check("SAE", "note", "4 GiB to download")])


def test_several_stops_are_one_error_in_the_order_in_which_a_user_meets_them():
    found = [Check("labels", "stop", "None."), Check("memory", "stop", "Too large.")]
    with pytest.raises(EsrError) as told:
        raise_stops(found)
    assert str(told.value).splitlines()[1:] == ["1. memory: Too large.", "2. labels: None."]


def test_what_is_looked_at_is_ok_a_note_or_a_stop():
    def stop():
        raise EsrError("No.")

    assert look("x", stop) == [Check("x", "stop", "No.")]
    assert look("x", lambda: None) == []
    assert look("x", lambda: "yes") == [Check("x", "ok", "yes")]


def test_a_package_outside_the_bounds_is_a_stop_with_the_command(monkeypatch):
    assert "transformers" in check_versions()
    installed = checks.version
    old = {"nnsight": "0.7.9", "transformers": "6.0.0"}
    monkeypatch.setattr(checks, "version", lambda name: old.get(name) or installed(name))
    with pytest.raises(
        EsrError, match=r"transformers is 6\.0\.0.*pip install .*'transformers"
    ) as told:
        check_versions()
    assert "nnsight is 0.7.9" in str(told.value) and "sae-lens" not in str(told.value)


def test_a_run_tells_memory_access_judge_and_sae_at_once(monkeypatch):
    small_machine(monkeypatch)
    model = get_model("esr/gemma-9b", memoize=False)
    with pytest.raises(EsrError) as told:
        open_judge(str(model), model.api, Wanted(labels=True))
    lines = str(told.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "1. memory",
        "2. access",
        "3. judge",
        "4. SAE",
    ]


def test_memory_is_not_looked_at_where_a_server_runs_the_model(monkeypatch):
    small_machine(monkeypatch)
    model = get_model("esr/llama-70b", memoize=False, backend="vllm", base_url="http://127.0.0.1:9")
    found = by_name(every_check(str(model), model.api, "esr-judge/offline"))
    assert found["memory"].state == "ok" and found["judge"].state == "ok"
    assert found["server"].state == "stop"
    assert "No vLLM server answers at http://127.0.0.1:9" in found["server"].said


def test_check_of_the_embedded_subject_finds_nothing_in_the_way():
    result = CliRunner().invoke(app, ["check", "smollm2-135m", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output[result.output.index("{") :])["checks"]
    assert {one["state"] for one in found} == {"ok"}
    strengths = next(one["said"] for one in found if one["name"] == "strengths")
    assert strengths.startswith("44 of 44 ")


def test_the_model_under_test_can_be_the_judge_that_is_checked():
    result = CliRunner().invoke(app, ["check", "smollm2-135m", "--grader", "self", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output[result.output.index("{") :])["checks"]
    said = {one["name"]: one["said"] for one in found}
    assert said["judge"] == "esr-judge/self" and said["strengths"].startswith("0 of 44 ")


def test_check_fails_on_a_stop_and_shows_every_row(monkeypatch):
    small_machine(monkeypatch)
    result = CliRunner().invoke(app, ["check", "llama-8b", "-M", "steering_layer=32"])
    assert result.exit_code == 1
    for said in ("needs about", "HF_HUB_OFFLINE", "ANTHROPIC_API_KEY", "layers 0 to 31", "labels"):
        assert said in result.output
    assert "Traceback" not in result.output


def test_a_model_that_no_list_knows_is_checked_by_its_own_config(tmp_path, monkeypatch):
    import numpy as np

    config = {"text_config": {"num_hidden_layers": 3, "hidden_size": 16}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    save_file({"w": np.zeros((4, 5), np.float32)}, tmp_path / "model.safetensors")
    api = get_model(f"esr/{tmp_path}", memoize=False, steering_layer=3).api
    known = api.needs.known
    assert (known.n_layers, known.d_model, known.n_parameters) == (3, 16, 20)
    found = by_name(api.checks())
    assert "out of range" in found["layers"].said and found["layers"].state == "stop"
    assert found["memory"].state == "ok"


def test_inspect_eval_ends_with_all_stops_and_a_failure_before_any_sample(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "ANTHROPIC_API_KEY"}
    command = Path(sys.executable).with_name("inspect")
    done = subprocess.run(
        [command, "eval", "esr_eval/esr", "--model", "esr/gemma-2b", "--display", "plain"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**env, "HF_HUB_OFFLINE": "1", "INSPECT_LOG_DIR": str(tmp_path / "logs")},
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said
    assert "things stand in the way of this run" in said
    assert "ANTHROPIC_API_KEY" in said
    assert not list(tmp_path.rglob("*.eval"))


def checked(*words):
    done = CliRunner().invoke(app, ["check", *words, "--json"])
    text = done.output[done.output.index("{") :]
    return done.exit_code, {one["name"]: one for one in json.loads(text)["checks"]}


def test_labels_that_are_published_are_to_be_fetched_and_other_judges_strengths_not_counted():
    _, found = checked("llama-70b")
    said = "to be fetched from llama3.3-70b-it/50-resid-post-gf"
    assert (found["labels"]["state"], found["labels"]["said"]) == ("note", said)
    code, found = checked("smollm2-135m", "--grader", "esr-judge/lexical")
    assert code == 0 and found["strengths"]["state"] == "note"


@pytest.mark.model
def test_with_the_weights_at_hand_the_fit_of_the_sae_is_measured():
    code, found = checked("smollm2-135m", "--measure", "-M", "device=cpu")
    assert code == 0
    assert "median norm" in found["residual"]["said"]
    explained = int(found["SAE fit"]["said"].partition("%")[0].rpartition(" ")[2])
    assert 60 < explained < 95
    # At another layer than its own it hardly describes what is there.
    code, found = checked(
        "smollm2-135m", "--measure", "-M", "device=cpu", "-M", "steering_layer=27"
    )
    assert code == 0 and found["SAE fit"]["state"] == "note"


@pytest.mark.model
def test_a_model_judges_itself_with_the_same_weights_unsteered(tmp_path, monkeypatch):
    loads = []
    load = LocalBackend.__init__
    monkeypatch.setattr(
        LocalBackend, "__init__", lambda self, *args: loads.append(args) or load(self, *args)
    )
    judge = get_model("esr-judge/self", config=GenerateConfig(max_tokens=16), memoize=False)
    (log,) = inspect_eval(
        esr,
        # Its own: a test before this one may have left such a model, with its weights loaded.
        model=get_model("esr/smollm2-135m", memoize=False, device="cpu"),
        model_roles={"grader": judge},
        task_args={"latents": "795", "trials_per_latent": 1, "strength": 150},
        max_tokens=24,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success" and len(loads) == 1, log.error
    [sample] = log.samples
    events = [event for event in sample.events if event.event == "model"]
    steered, judged = events[0], [event for event in events if event.model == "esr-judge/self"]
    assert steered.output.metadata["edited_positions"] > 0
    assert judged
    for event in judged:  # nothing was edited, and so nothing counted
        assert not (event.output.metadata or {}).get("edited_positions")
    assert log.eval.metadata["judge"] == "esr-judge/self"
