"""All that stops a run is told at once; with the weights at hand, whether the SAE fits."""

import json

import pytest
from inspect_ai import eval as inspect_eval
from typer.testing import CliRunner

from esr_eval.backends.local import LocalBackend
from esr_eval.checks import Check
from esr_eval.cli import app
from esr_eval.errors import EsrError
from esr_eval.provider.checks import raise_stops
from esr_eval.tasks.esr import esr


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch):
    """No key, no token, empty caches."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))


def checked(*words):
    done = CliRunner().invoke(app, ["check", *words, "--json"])
    text = done.output[done.output.index("{") :]
    return done.exit_code, {one["name"]: one for one in json.loads(text)["checks"]}


def test_a_run_tells_all_its_stops_in_one_error(tmp_path):
    with pytest.raises(EsrError) as found:
        inspect_eval(esr, model="esr/llama-70b", display="none", log_dir=str(tmp_path / "logs"))
    message = found.value.message
    assert "things stand in the way of this run" in message
    for part in (
        "memory: llama-70b needs about 151 GiB",
        "ANTHROPIC_API_KEY",
        "access: meta-llama",
    ):
        assert part in message
    # As a user meets them, numbered.
    assert message.index("memory:") < message.index("access:") < message.index("judge:")
    assert not list((tmp_path / "logs").glob("*.eval"))


def test_a_single_stop_is_told_as_it_is():
    with pytest.raises(EsrError, match=r"^no key$"):
        raise_stops([Check("judge", "stop", "no key"), Check("memory", "ok", "enough")])
    raise_stops([Check("memory", "ok", "enough"), Check("labels", "note", "to be fetched")])


def test_the_command_lists_what_is_right_and_fails_with_a_stop():
    code, found = checked("llama-70b")
    assert code == 1
    assert {name for name, one in found.items() if one["state"] == "stop"} >= {"memory", "judge"}
    assert found["layers"]["said"] == "steering 33, feature 50 of 0 to 79"
    assert found["labels"] == {
        "name": "labels",
        "state": "note",
        "said": "to be fetched from llama3.3-70b-it/50-resid-post-gf",
    }
    code, found = checked("llama-70b", "-M", "backend=ndif", "-M", "steering_layer=90")
    assert code == 1 and found["memory"]["state"] == "ok"
    assert "-M steering_layer=90 is out of range" in found["layers"]["said"]


def test_the_embedded_subject_has_all_it_needs():
    code, found = checked("smollm2-135m")
    assert code == 0 and {one["state"] for one in found.values()} == {"ok"}
    assert found["strengths"]["said"].startswith("44 of 44 latents")
    # Those of another judge are none, which is in nobody's way.
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
    (log,) = inspect_eval(
        esr,
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        model_roles={"grader": "esr-judge/self"},
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
