"""Files of models and adapters that are not whole, and a hub that does not give them."""

import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from esr_eval.errors import EsrError
from esr_eval.model.weights import check_adapter_files, check_hub, check_model_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 268535808\n"


@pytest.fixture
def folder(tmp_path):
    """A model of two shards."""
    (tmp_path / "config.json").write_text("{}", "utf-8")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, shard in shards.items():
        save_file({name: torch.ones(64)}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": shards}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return tmp_path


def test_a_whole_model_passes(folder):
    check_model_files(str(folder), None)
    save_file({"a": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()
    check_model_files(str(folder), None)


def pointer(file):
    file.write_text(POINTER, "utf-8")


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def short(file):
    file.write_bytes(file.read_bytes()[:-8])


def longer(file):
    file.write_bytes(file.read_bytes() + b"\0" * 8)


def empty(file):
    file.write_bytes(b"")


def other(file):
    file.write_bytes(struct.pack("<Q", 20) + b"not a header at all!")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (pointer, "git lfs pull"),
        (half, "is damaged"),
        (short, "is damaged: it has"),
        (longer, "is damaged: it has"),
        (empty, "is damaged"),
        (other, "its header cannot be read"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: save_file({"c": torch.ones(2)}, file), "it lacks b"),
    ],
)
def test_a_shard_that_is_not_whole_is_named(folder, damage, sentence):
    damage(folder / "model-2.safetensors")
    with pytest.raises(EsrError, match=rf"model-2\.safetensors.*{sentence}"):
        check_model_files(str(folder), None)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_small_files_may_be_pointers_too(folder, name):
    pointer(folder / name)
    with pytest.raises(EsrError, match=rf"{name} is a git-lfs pointer"):
        check_model_files(str(folder), None)


def test_a_folder_without_weights_or_config_is_told(tmp_path):
    with pytest.raises(EsrError, match=r"there is no config\.json"):
        check_model_files(str(tmp_path), None)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(EsrError, match="holds no weights"):
        check_model_files(str(tmp_path), None)
    torch.save({"a": torch.ones(64)}, tmp_path / "pytorch_model.bin")
    check_model_files(str(tmp_path), None)
    half(tmp_path / "pytorch_model.bin")
    with pytest.raises(EsrError, match=r"pytorch_model\.bin is damaged: it is cut short"):
        check_model_files(str(tmp_path), None)


def test_an_adapters_files_are_checked_as_well(tmp_path):
    with pytest.raises(EsrError, match=r"no adapter_config\.json"):
        check_adapter_files(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(EsrError, match=r"holds no adapter_model\.safetensors"):
        check_adapter_files(tmp_path)
    pointer(tmp_path / "adapter_model.safetensors")
    with pytest.raises(EsrError, match="git lfs pull"):
        check_adapter_files(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback that has one gated model, one that is no model, and no other."""
    codes = {"lab/gated": (401, "GatedRepo"), "lab/data": (404, "EntryNotFound")}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            status, code = codes.get("/".join(self.path.split("/")[1:3]), (404, "RepoNotFound"))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [
        ("lab/gated", "is gated: ask for access"),
        ("lab/nothing", "There is no model lab/nothing on the hub"),
        ("lab/data", r"no model of transformers: it has no config\.json"),
        ("not an id/at all/", "could not be loaded"),
    ],
)
def test_what_the_hub_says_is_one_sentence(hub, repository, sentence):
    with pytest.raises(EsrError, match=sentence):
        check_hub(repository, None)


def test_whatever_the_hubs_http_client_raises_is_one_sentence(monkeypatch):
    class ClientError(Exception):
        """Of a client that this project does not know."""

    def download(*args, **kwargs):
        raise ClientError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(EsrError, match=r"the hub cannot be reached .*: check the network"):
        check_hub("meta-llama/Llama-3.3-70B-Instruct", None)
