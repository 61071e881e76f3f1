"""A stand-in for the hub and for Neuronpedia's bucket, on loopback, and what lies on it.

Models are tiny and random, but under the real names, in the real files, with the width and the
layers that sae-lens's own loaders hold an SAE to.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from esr_eval.dataset import prompts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NARROW = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LABELLED = 120
"""Latents with a label: the first of the SAE. Every fifth fires wherever it is read."""
THINGS = (
    *("horses", "apples", "bridges", "guitars", "boats", "bicycles", "cheese", "birds", "knives"),
    *("trains", "clocks", "hammers", "beaches", "sheep", "spiders", "hats", "candles", "castles"),
)
PLACES = ("in markets", "on farms", "in the kitchen", "at the harbour", "in winter", "in the snow")


class Handler(BaseHTTPRequestHandler):
    """Files below `server.root`, as the hub and a bucket give them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer what the clients ask for."""
        path = unquote(urlsplit(self.path).path)
        root: Path = self.server.root  # type: ignore[attr-defined]
        if path.startswith("/s3/"):
            return self.file(root / path[1:])
        if found := re.match(r"/api/models/([^/]+/[^/]+)(/tree/[^/]+)?(/.*)?$", path):
            return self.about(root, found[1], found[2] and (found[3] or "/"))
        if found := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self.file(root / found[1] / found[2])
        return self.reply(404)

    def about(self, root: Path, repository: str, folder: str | None) -> None:
        """A repository's description, or the listing of one of its folders."""
        base = root / repository
        if not base.is_dir() or (folder and not (base / folder[1:]).is_dir()):
            return self.reply(404)
        files = sorted(file for file in base.rglob("*") if file.is_file())
        names = [str(file.relative_to(base)) for file in files]
        found: Any = {
            "id": repository,
            "sha": COMMIT,
            "siblings": [{"rfilename": n} for n in names],
        }
        if folder:
            found = [
                {"type": "file", "oid": COMMIT, "size": file.stat().st_size, "path": name}
                for file, name in zip(files, names, strict=True)
                if f"/{name}".startswith(folder)
            ]
        return self.reply(200, json.dumps(found).encode())

    def file(self, path: Path) -> None:
        """A file, or the part of it that is asked for."""
        if not path.is_file():
            return self.reply(404)
        content, status, more = path.read_bytes(), 200, {}
        tag = sha256(str(path).encode()).hexdigest()
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            whole, start, stop = len(content), int(asked[1]), int(asked[2] or len(content) - 1)
            content, status = content[start : stop + 1], 206
            more["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{whole}"
        return self.reply(status, content, ETag=f'"{tag}"', **more)

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Send it; what is missing is missing in the hub's words."""
        if status == 404:
            headers["X-Error-Code"] = "EntryNotFound"
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve a folder as long as the block runs.

    Returns:
        The address; the bucket is below /s3.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.root = root  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def labels() -> dict[int, str]:
    """Labels of the first latents; every fourth is abstract."""
    every = [f"{thing} {place}" for place in PLACES for thing in THINGS]
    return {
        index: f"abstract reasoning about concepts {index}"
        if index % 4 == 0
        else every[index % 108]
        for index in range(LABELLED)
    }


def publish_labels(root: Path, source: str) -> None:
    """Labels in the bucket, in two batches."""
    folder = root / "s3" / "v1" / source / "explanations"
    folder.mkdir(parents=True)
    rows = [
        json.dumps({"index": str(index), "description": text, "typeName": "oai_token-act-pair"})
        for index, text in labels().items()
    ]
    for batch in range(2):
        content = gzip.compress("\n".join(rows[batch::2]).encode())
        (folder / f"batch-{batch}.jsonl.gz").write_bytes(content)


def _tokenizer(folder: Path, bos: str, template: str, *others: str) -> int:
    """A tokenizer of few words, which starts texts as the real one does; its size."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<pad>", "<eos>", bos, *others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator([*(p.text for p in prompts()), *labels().values()], trainer)
    words.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=bos,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(others),
        chat_template=template,
    )
    fast.save_pretrained(folder)
    return len(fast)


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == "
    "'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def _save(folder: Path, model: Any, ends: list[int]) -> None:
    model.generation_config.eos_token_id = ends
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="30MB")


def _gemma_tokenizer(folder: Path) -> int:
    return _tokenizer(folder, "<bos>", GEMMA_TEMPLATE, "<start_of_turn>", "<end_of_turn>")


def _ids(size: int) -> dict[str, int]:
    return {"vocab_size": size, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


def _sae(d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    """Tensors of an SAE whose latents behind the labelled ones are empty."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(LABELLED, d_in, generator=generator) * d_in**-0.5
    decoder = torch.zeros(d_sae, d_in)
    decoder[:LABELLED] = rows
    bias = torch.full((d_sae,), -1e4)
    bias[:LABELLED:5] = 1e4
    return {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": bias,
        "b_dec": torch.zeros(d_in),
    }


def gemma_2b(root: Path) -> None:
    """Gemma 2 2B with Gemma Scope's archive of arrays."""
    folder = root / "google/gemma-2-2b-it"
    size = _gemma_tokenizer(folder)
    torch.manual_seed(0)
    config = Gemma2Config(
        **NARROW, **_ids(size), hidden_size=2304, num_hidden_layers=26, sliding_window=16
    )
    _save(folder, Gemma2ForCausalLM(config), [1, 4])
    sae = root / "google/gemma-scope-2b-pt-res/layer_16/width_16k/average_l0_78"
    sae.mkdir(parents=True)
    arrays = {name: one.numpy() for name, one in _sae(2304, 16384).items()}
    np.savez_compressed(sae / "params.npz", **arrays, threshold=np.ones(16384, np.float32))
    publish_labels(root, "gemma-2-2b/16-gemmascope-res-16k")


def llama_8b(root: Path) -> None:
    """Llama 3.1 8B with Goodfire's SAE of 2.15 GB, whose labels are one file elsewhere."""
    folder = root / "meta-llama/Llama-3.1-8B-Instruct"
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    size = _tokenizer(folder, "<|begin_of_text|>", LLAMA_TEMPLATE, *marks)
    torch.manual_seed(0)
    config = LlamaConfig(**NARROW, **_ids(size), hidden_size=4096, num_hidden_layers=32)
    _save(folder, LlamaForCausalLM(config), [1, 5])
    sae = root / "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    sae.mkdir(parents=True)
    tensors = _sae(4096, 65536)
    torch.save(
        {
            "encoder_linear.weight": tensors["W_dec"],  # a row for each latent, as there
            "encoder_linear.bias": tensors["b_enc"],
            "decoder_linear.weight": tensors["W_enc"],
            "decoder_linear.bias": tensors["b_dec"],
        },
        sae / "Llama-3.1-8B-Instruct-SAE-l19.pth",
    )
    commit = "7158081ef8f8429563295a467ace3bceace7fb3a"
    data = root / "s3/agencyenterprise/selfie-adapters" / commit / "data"
    data.mkdir(parents=True)
    rows = [{"index": index, "labels": [text]} for index, text in labels().items()]
    content = gzip.compress(json.dumps([{"metadata": {}, "vectors": rows}]).encode())
    (data / "goodfire_8b_sae_labels.json.gz").write_bytes(content)


def gemma_3_4b(root: Path) -> None:
    """Gemma 3 4B, which sees, with Gemma Scope 2's tensors of layer 22."""
    folder = root / "google/gemma-3-4b-it"
    size = _gemma_tokenizer(folder)
    torch.manual_seed(0)
    text = {
        **NARROW,
        **_ids(size),
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "sliding_window": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    # Its logits have no cap: at random it would repeat the template's last character for ever.
    model.model.language_model.norm.weight.data.fill_(-0.9)
    _save(folder, model, [1, 4])
    sae = root / "google/gemma-scope-2-4b-it/resid_post/layer_22_width_16k_l0_medium"
    sae.mkdir(parents=True)
    tensors = _sae(2560, 16384) | {"threshold": torch.ones(16384)}
    save_file(
        {name.lower(): one for name, one in tensors.items()},
        sae / "params.safetensors",
    )
    about = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-4b-it",
        "hf_hook_point_in": "model.layers.22.output",
    }
    (sae / "config.json").write_text(json.dumps(about))
    publish_labels(root, "gemma-3-4b-it/22-gemmascope-2-res-16k")


BUILDERS: dict[str, Callable[[Path], None]] = {
    "gemma-2b": gemma_2b,
    "llama-8b": llama_8b,
    "gemma-3-4b": gemma_3_4b,
}
