import pytest
import torch
from safetensors.torch import save_file

from esr_eval._util.digests import file_sha256
from esr_eval.errors import EsrError
from esr_eval.spec import AddVector
from esr_eval.steering.plan import load_vector


def edit(path, sha256, tensor="fire"):
    return AddVector(path=str(path), tensor=tensor, sha256=sha256, strength=1.0, layer=3)


def test_a_vector_comes_from_its_file_and_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"fire": torch.arange(4.0)}, path)
    digest = file_sha256(path)
    assert torch.equal(load_vector(edit(path, digest)), torch.arange(4.0))
    with pytest.raises(EsrError, match="no tensor 'rain'"):
        load_vector(edit(path, digest, tensor="rain"))
    save_file({"fire": torch.arange(5.0)}, path)
    from esr_eval.backends import plan

    plan._vector_from_file.cache_clear()
    with pytest.raises(EsrError, match="has changed"):
        load_vector(edit(path, digest))
    with pytest.raises(EsrError, match="does not exist"):
        load_vector(edit(tmp_path / "none.safetensors", digest))
