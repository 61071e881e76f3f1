"""Arrays beside logs: whole, found again, and never taken for others."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from esr_eval.errors import EsrError
from esr_eval.logs import sidecar


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path / "cache"))


ARRAYS = {
    "max": np.arange(6, dtype=np.float32).reshape(2, 3),
    "rate": np.array([0.5], dtype=np.float16),
    "offsets": np.arange(4, dtype=np.int64).reshape(2, 2).T,  # not contiguous
}


def same(found):
    assert set(found) == set(ARRAYS)
    return all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_arrays_are_found_in_the_cache_and_then_beside_the_log(tmp_path):
    log = tmp_path / "logs" / "a.eval"
    ref = sidecar.save(ARRAYS, {"sample": "x"})
    assert ref.shapes == {"max": (2, 3), "rate": (1,), "offsets": (2, 2)}
    assert same(sidecar.load(ref, log))
    sidecar.put_beside(ref, log)
    sidecar.put_beside(ref, log)  # once more does no harm
    assert (log.parent / ref.path).is_file() and not (tmp_path / "cache" / ref.path).exists()
    assert same(sidecar.load(ref.model_dump(mode="json"), f"file://{log}"))


def test_the_same_content_has_one_file_and_another_content_another():
    ref = sidecar.save(ARRAYS, {"sample": "x"})
    assert sidecar.save(ARRAYS, {"sample": "x"}) == ref
    assert sidecar.save({"max": ARRAYS["max"] + 1}, {"sample": "x"}).path != ref.path


def test_a_missing_or_changed_file_is_told(tmp_path):
    log = tmp_path / "a.eval"
    ref = sidecar.save(ARRAYS, {})
    sidecar.put_beside(ref, log)
    path = tmp_path / ref.path
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(EsrError, match="have changed"):
        sidecar.load(ref, log)
    path.unlink()
    with pytest.raises(EsrError, match="are missing"):
        sidecar.load(ref, log)
    with pytest.raises(EsrError, match="on this machine"):
        sidecar.load(ref, "s3://bucket/a.eval")


def written(tmp_path, content=None, **change):
    """A reference as a foreign log has it, and the log; the file beside it holds `content`."""
    log = tmp_path / "logs" / "a.eval"
    ref = sidecar.save(ARRAYS, {}).model_dump(mode="json")
    if content is not None:
        digest = hashlib.sha256(content).hexdigest()
        ref |= {"sha256": digest, "path": f"activations/{digest[:16]}.safetensors"}
        target = log.parent / ref["path"]
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
    return ref | change, log


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.safetensors",
        "activations/../../x",
        "activations/other",
        "a\\b",
        "",
    ],
)
def test_a_log_has_no_say_in_where_its_file_lies(path, tmp_path):
    ref, log = written(tmp_path, path=path)
    with pytest.raises(EsrError, match="as no log of ours does"):
        sidecar.load(ref, log)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 63}, {"shapes": {}}, {"shapes": {"max": [-1]}}, {"shapes": None},
        {"shapes": {"max": [2**40]}}, {"shapes": {str(i): [1] for i in range(99)}},
        {"dtypes": {"max": "object"}}, {"dtypes": {"other": "float32"}},
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_ours_is_refused_before_a_file_is_opened(change, tmp_path):
    ref, log = written(tmp_path, **change)
    with pytest.raises(EsrError, match="as no log of ours does"):
        sidecar.load(ref, log)
    with pytest.raises(EsrError, match="as no log of ours does"):
        sidecar.reference("no dictionary", log)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_out_of_the_logs_folder_is_not_followed(linked, tmp_path):
    content = save(ARRAYS)
    ref, log = written(tmp_path, content)
    inside = log.parent / ref["path"]
    outside = tmp_path / "outside"
    outside.mkdir()
    inside.rename(outside / inside.name)
    if linked == "folder":
        inside.parent.rmdir()
        inside.parent.symlink_to(outside)
    else:
        inside.symlink_to(outside / inside.name)
    with pytest.raises(EsrError, match="a link to outside the folder"):
        sidecar.load(ref, log)


def test_a_file_that_holds_something_else_than_its_log_says(tmp_path):
    other = {**ARRAYS, "max": ARRAYS["max"].T.copy()}
    ref, log = written(tmp_path, save(other))
    with pytest.raises(EsrError, match="other shapes or types"):
        sidecar.load(ref, log)


def test_other_types_and_no_arrays_at_all(tmp_path):
    flags = {name: array.astype(bool) for name, array in ARRAYS.items()}
    ref, log = written(tmp_path / "a", save(flags))
    with pytest.raises(EsrError, match="other shapes or types"):
        sidecar.load(ref, log)
    with pytest.raises(EsrError, match="hold bool"):
        sidecar.load(ref | {"dtypes": {}}, log)
    ref, log = written(tmp_path / "b", b"no arrays")
    with pytest.raises(EsrError, match="are no arrays"):
        sidecar.load(ref, log)


def test_a_file_larger_than_its_log_says_is_not_read_whole(tmp_path):
    ref, log = written(tmp_path, save(ARRAYS) + b"\0" * (2 * sidecar.HEADER_BYTES))
    with pytest.raises(EsrError, match="have changed"):
        sidecar.load(ref, log)


def test_older_references_without_types_are_read(tmp_path):
    ref, log = written(tmp_path, dtypes={})
    assert same(sidecar.load(ref, log))
