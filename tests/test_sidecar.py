"""Arrays beside logs: whole, found again, and never taken for others."""

import numpy as np
import pytest

from esr_eval import sidecar
from esr_eval.errors import EsrError


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
