"""The cache of strengths: keys, atomic files, damage, bundles, checkpoints."""

import json
import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from esr_eval._util.files import scratch_folder, share
from esr_eval._util.paths import CACHE_ENV, cache_root
from esr_eval.calibration.bisection import Bisection, Round, calibration_prior
from esr_eval.calibration.curve import CurveSearch
from esr_eval.calibration.methods import begin
from esr_eval.calibration.store import (
    Checkpoint,
    Setting,
    StrengthRecord,
    cache_folder,
    calibrated_strengths,
    export_bundle,
    find_checkpoint,
    find_strength,
    load_bundle,
    save,
    save_checkpoint,
)
from esr_eval.calibration.strengths import known_strengths, setting_of
from esr_eval.data.arguments import strength_rule
from esr_eval.data.trial import UNCALIBRATED, Strength
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.logs import sidecar
from esr_eval.spec import Runtime, SAERef
from esr_eval.subjects import RELATIVE_PRIOR, CalibrationPrior, find_subject

PRIOR = CalibrationPrior(prior_mean=7, prior_std=5, lower=0, upper=100, rounds=2)
RUNTIME = Runtime(subject="tiny", model="org/tiny", sae=SAERef(release="r"), steering_layer=1)
PROMPTS = ["How do I add two fractions?", "How do I boil an egg?"]


class Named(NamedTuple):
    index: int
    label: str


SETTING = Setting.of(RUNTIME, PRIOR, "esr-judge/offline", prompts=PROMPTS, temperature=0.6)


def record(latent: int = 3, label: str = "oceans", setting: Setting = SETTING) -> StrengthRecord:
    search = Bisection(prior=PRIOR).observe([90.0]).observe([20.0, 35.0], unscored=1)
    check = Round(strength=search.strength, scores=(25.0, 35.0), unscored=1)
    return StrengthRecord.of(setting, latent, label, search, check=check, seed=0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    return cache_folder()


def test_saved_record_is_found_again_as_it_was() -> None:
    saved = record().sealed()
    save(saved)
    assert find_strength(saved.key) == saved
    assert (saved.achieved_score, saved.generations, saved.unscored) == (30.0, 7, 2)


def test_nothing_but_finished_files_is_left(folder: Path) -> None:
    path = save(record())
    assert [file.name for file in folder.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": RUNTIME.model_copy(update={"dtype": "bfloat16"})},
        {"runtime": RUNTIME.model_copy(update={"steering_layer": 2})},
        {"prior": PRIOR.model_copy(update={"rounds": 3})},
        {"prior": PRIOR.model_copy(update={"target": 40.0})},
        {"prior": PRIOR.model_copy(update={"max_tokens": 64})},
        {"prior": PRIOR.model_copy(update={"method": "curve"})},
        {"prompts": "other"},
        {"temperature": 0.7},
        {"grader": "anthropic/claude-haiku-4-5-20251001"},
        {"rubric": 99},
        {"files": {"sae": "other"}},
    ],
)
def test_whatever_decides_the_strength_changes_the_key(change: dict[str, object]) -> None:
    assert SETTING.model_copy(update=change).key(3, "oceans") != SETTING.key(3, "oceans")


def test_latent_and_label_change_the_key() -> None:
    keys = {SETTING.key(3, "oceans"), SETTING.key(4, "oceans"), SETTING.key(3, "lakes")}
    assert len(keys) == 3


def test_local_model_sae_and_adapter_count_by_their_content(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("model", "sae", "adapter")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"one")
        (folder / "cfg.json").write_text('{"d_in": 2}')
    runtime = RUNTIME.model_copy(
        update={
            "model": str(folders["model"]),
            "sae": SAERef(release=str(folders["sae"])),
            "adapter": str(folders["adapter"]),
        }
    )

    def key() -> str:
        setting = Setting.of(runtime, PRIOR, "judge", prompts=PROMPTS, temperature=0.6)
        return setting.key(3, "oceans")

    keys = [key()]
    (folders["sae"] / "cfg.json").write_text('{\r\n "d_in": 2}')
    (folders["sae"] / "README.md").write_text("A model card.")
    assert key() == keys[0]
    (folders["sae"] / "cfg.json").write_text('{"d_in": 3}')
    keys.append(key())
    (folders["sae"] / "weights.safetensors").write_bytes(b"three")
    keys.append(key())
    for name in ("adapter", "model"):
        (folders[name] / "weights.safetensors").write_bytes(b"three")
        keys.append(key())
    assert len(set(keys)) == 5


def _corrupt_strength(text: str) -> str:
    data = json.loads(text)
    data["strength"] += 1
    return json.dumps(data)


def _drop_digest(text: str) -> str:
    return json.dumps({**json.loads(text), "digest": ""})


def _drop_field(text: str) -> str:
    data = json.loads(text)
    del data["seed"]
    return json.dumps(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        _corrupt_strength,
        _drop_digest,
        _drop_field,
    ],
    ids=["cut short", "empty", "wrong type", "changed value", "no digest", "field missing"],
)
def test_damaged_file_is_reported_and_set_aside(
    damage: object, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = record()
    path = save(saved)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert find_strength(saved.key) is None
    assert str(path) in caplog.text
    assert [file.name for file in folder.iterdir()] == [f"{path.name}.damaged"]
    save(saved)
    assert find_strength(saved.key) == saved


def test_bytes_that_are_no_text_are_set_aside() -> None:
    saved = record()
    path = save(saved)
    path.write_bytes(b"\xff\xfe\x00")
    assert find_strength(saved.key) is None
    assert not path.exists()


def test_record_under_another_records_name_is_not_trusted() -> None:
    path = save(record(3))
    other = record(4)
    path.rename(path.with_name(f"{other.key}.json"))
    assert find_strength(other.key) is None


def test_bundle_is_looked_up_second(tmp_path: Path) -> None:
    shipped, own = record(3), record(4, "lakes")
    export_bundle(tmp_path / "strengths.json", [own, shipped])
    assert find_strength(shipped.key) is None
    assert find_strength(shipped.key, tmp_path / "strengths.json") == shipped
    assert [entry["latent"] for entry in json.loads((tmp_path / "strengths.json").read_text())] == [
        3,
        4,
    ]
    newer = StrengthRecord.of(
        SETTING, 3, "oceans", Bisection(prior=PRIOR).observe([30.0]), check=None, seed=1
    )
    save(newer)
    assert find_strength(shipped.key, tmp_path / "strengths.json") == newer


def test_damaged_entry_of_a_bundle_is_reported_and_the_rest_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "strengths.json"
    export_bundle(path, [record(3), record(4)])
    entries = json.loads(path.read_text())
    entries[0]["strength"] = 1.0
    path.write_text(json.dumps(entries))
    assert list(load_bundle(path)) == [record(4).key]
    assert str(path) in caplog.text
    path.write_text("{")
    assert load_bundle(path) == {}


def test_missing_bundle_holds_nothing(tmp_path: Path) -> None:
    assert load_bundle(tmp_path / "none.json") == {}


def test_lookup_names_what_is_missing() -> None:
    save(record(3))
    latents = [Named(3, "oceans"), Named(4, "lakes")]
    found, missing = calibrated_strengths(SETTING, latents)
    assert (list(found), missing) == ([3], [Named(4, "lakes")])


def test_a_strength_found_in_another_way_serves_and_says_so() -> None:
    runtime = find_subject("llama-8b").runtime()
    subject = find_subject("llama-8b")
    wanted = setting_of(runtime, subject, "x/y", calibration_prior(subject))
    latents = [Latent(index=3, label="oceans"), Latent(index=4, label="lakes")]

    def known() -> dict[int, Strength]:
        return known_strengths(
            strength_rule("calibrated"), runtime, subject, latents, "x/y", {"rounds": 3}
        )

    assert known() == {}
    # Neither of another judge, runtime, rubric or target score.
    for change in (
        {"grader": "x/z"},
        {"rubric": 99},
        {"runtime": runtime.model_copy(update={"dtype": "float32"})},
        {"prior": PRIOR.model_copy(update={"target": 50.0})},
    ):
        save(record(3, "oceans", wanted.model_copy(update=change)))
    assert known() == {}
    other = {"prior": PRIOR, "prompts": "others", "temperature": 0.1}
    save(record(3, "seas", wanted.model_copy(update=other)))
    assert known()[3].how == "calibrated with another prior, set of tasks, temperature, label"
    assert 4 not in known()
    # Nor does the method move the strength that is looked for.
    by_curve = {"prior": calibration_prior(subject, {"rounds": 3, "method": "curve"})}
    save(record(4, "lakes", wanted.model_copy(update=by_curve)))
    assert known()[4].how == "calibrated with another method"
    served = wanted.runtime.model_copy(update={"backend": "vllm"})
    exact = wanted.model_copy(
        update={"runtime": served, "prior": calibration_prior(subject, {"rounds": 3})}
    )
    save(record(3, "oceans", exact))
    assert known()[3].how == "calibrated"
    twice = known_strengths(strength_rule("2x"), runtime, subject, latents, "x/y", {"rounds": 3})
    assert twice[3] == Strength(2 * known()[3].value, "calibrated, times 2")


def test_a_record_in_units_of_the_norm_holds_strengths_of_the_latent() -> None:
    prior = RELATIVE_PRIOR.model_copy(update={"rounds": 1})
    setting = SETTING.model_copy(update={"prior": prior})
    search = Bisection(prior=prior).observe([90.0])
    check = Round(strength=search.strength, scores=(25.0,))
    found = StrengthRecord.of(setting, 3, "oceans", search, check=check, seed=0, scale=50.0)
    assert found.strength == pytest.approx(50 * search.strength)
    assert found.rounds[0].strength == pytest.approx(50 * 0.6, abs=1)
    assert found.check is not None and found.check.strength == pytest.approx(found.strength)
    save(found)
    assert find_strength(found.key) == found


def test_strengths_that_need_no_search_are_known_at_once() -> None:
    subject, latents = find_subject("llama-8b"), [Latent(index=3, label="oceans")]

    def known(strength: str | float, name: str = "llama-8b") -> dict[int, Strength]:
        subject = find_subject(name)
        return known_strengths(
            strength_rule(strength), subject.runtime(), subject, latents, "judge"
        )

    assert subject.calibration is not None
    assert known(12) == {3: Strength(12.0, "given")}
    assert known("prior") == {3: Strength(subject.calibration.prior_mean, UNCALIBRATED)}
    # A share of the residual's norm has to be measured.
    assert known("0.6rms") == {} and known("prior", "some/model") == {}


def test_cached_files_have_the_permissions_of_the_umask() -> None:
    before = os.umask(0o022)
    try:
        path = save(record())
        ref = sidecar.save({"a": np.zeros(2)}, {})
        staged = cache_root() / ref.path
        folder = scratch_folder(path.parent / "folder")
        # As safetensors and tempfile leave them.
        (folder / "weights").touch(0o600)
        share(folder)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, staged, folder, folder / "weights")]
    assert modes == [0o644, 0o644, 0o755, 0o644]


def test_checkpoint_lives_until_its_record_is_saved(folder: Path) -> None:
    saved = record()
    search = Bisection(prior=PRIOR).observe([50.0])
    save_checkpoint(Checkpoint(key=saved.key, seed=0, search=search))
    found = find_checkpoint(saved.key, seed=0)
    assert found is not None and found.search == search
    assert find_checkpoint(saved.key, seed=1) is None
    save(saved)
    assert find_checkpoint(saved.key, seed=0) is None


def test_checkpoint_of_a_curve_is_read_as_one() -> None:
    prior = PRIOR.model_copy(update={"method": "curve"})
    search = begin(prior).observe([50.0]).observe([], unscored=1)
    key = SETTING.model_copy(update={"prior": prior}).key(3, "oceans")
    save_checkpoint(Checkpoint(key=key, seed=0, search=search))
    found = find_checkpoint(key, seed=0)
    assert found is not None and found.search == search
    assert isinstance(found.search, CurveSearch)


def test_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "file"))
    with pytest.raises(EsrError, match=CACHE_ENV):
        save(record())


def test_a_model_that_the_paper_has_no_prior_for_gets_a_relative_one() -> None:
    assert calibration_prior(find_subject("llama-70b"), {"rounds": 3}).rounds == 3
    assert calibration_prior(find_subject("org/model")) == RELATIVE_PRIOR
    thinks = find_subject("deepseek-r1-llama-8b")
    assert calibration_prior(thinks).max_tokens == thinks.max_tokens // 2 == 1024
    with pytest.raises(EsrError, match="prior_std"):
        calibration_prior(find_subject("org/model"), {"prior_std": 0})
    whole = {"prior_mean": 10, "prior_std": 5, "lower": 0, "upper": 50, "unit": "latent"}
    assert calibration_prior(find_subject("org/model"), whole).upper == 50
