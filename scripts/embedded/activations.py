"""Collect layer-14 residuals of the embedded subject over the corpus.

Reads documents.jsonl and chat.jsonl of the work folder (see corpus.py) and writes
activations.safetensors: one float16 row per kept token, with the token's sequence and
position, plus all sequences' token ids.

Kept are: in documents every token but the begin token at position 0; in chats the tokens of
the answer alone. Tokens of massive norm (over 4 x the median) are dropped: a handful of
them would otherwise decide both the scale and the loss.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from subject import (
    D_MODEL,
    MASSIVE,
    SEED,
    chat_ids,
    load_subject,
    pad_batch,
    read_jsonl,
    truncate_after_layer,
    write_text,
)
from torch import Tensor

# Kinds of text; the task answers are never trained on.
KINDS = ("wordnet", "wikipedia", "sotu", "tales", "news", "chat", "task")
HELD_OUT_DOCUMENTS = 0.03
HELD_OUT_HOW_TO = 0.15


@dataclass(frozen=True)
class Sequence:
    """Token ids of one run of the model and what to keep of them."""

    ids: list[int]
    keep_from: int
    kind: int
    held_out: bool


def how_to_topic(prompt: str) -> str | None:
    """The topic of a how-to prompt, None for prompts of other frames."""
    for frame in ("Explain how to ", "How do you "):
        if prompt.startswith(frame):
            return prompt.removeprefix(frame).rstrip(".?")
    return None


def document_sequences(rows: list[dict[str, Any]], tokenizer: Any, width: int) -> list[Sequence]:
    """Cut documents into sequences that each start with the begin token."""
    rng = random.Random(SEED)  # noqa: S311 - reproducible shuffling
    sequences = []
    for row in rows:
        held_out = rng.random() < HELD_OUT_DOCUMENTS
        ids = tokenizer(row["text"], add_special_tokens=False).input_ids
        for i in range(0, len(ids), width - 1):
            piece = ids[i : i + width - 1]
            if len(piece) >= 16:
                sequences.append(
                    Sequence(
                        [tokenizer.bos_token_id, *piece], 1, KINDS.index(row["source"]), held_out
                    )
                )
    return sequences


def chat_sequences(rows: list[dict[str, Any]], tokenizer: Any) -> list[Sequence]:
    """Prompt and answer of every chat; both frames of a how-to topic share its split."""
    topics = sorted({t for row in rows if (t := how_to_topic(row["prompt"]))})
    rng = random.Random(SEED)  # noqa: S311 - reproducible shuffling
    held = {topic for topic in topics if rng.random() < HELD_OUT_HOW_TO}
    sequences = []
    for row in rows:
        prompt = chat_ids(tokenizer, row["prompt"])
        task = row["kind"] == "task"
        sequences.append(
            Sequence(
                prompt + row["answer_ids"],
                len(prompt),
                KINDS.index("task" if task else "chat"),
                task or how_to_topic(row["prompt"]) in held,
            )
        )
    return sequences


def batches(sequences: list[Sequence], tokens: int) -> list[list[int]]:
    """Group sequences of similar length into batches of at most ``tokens`` tokens."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    groups: list[list[int]] = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(sequences[i].ids) > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


@torch.inference_mode()
def collect(stack: Any, sequences: list[Sequence], pad: int) -> dict[str, Tensor]:
    """Run the model over all sequences.

    Args:
        stack: Decoder cut after the layer.
        sequences: What to run.
        pad: Padding id.

    Returns:
        Columns acts, norm, seq and pos, one row per candidate token.
    """
    total = sum(len(s.ids) - s.keep_from for s in sequences)
    acts = torch.empty(total, D_MODEL, dtype=torch.float16)
    norm = torch.empty(total)
    seq = torch.empty(total, dtype=torch.int32)
    pos = torch.empty(total, dtype=torch.int16)
    done, start = 0, time.monotonic()
    for n, group in enumerate(batches(sequences, 4096)):
        ids, mask = pad_batch([sequences[i].ids for i in group], pad, left=False)
        hidden = stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, i in zip(hidden, group, strict=True):
            first, last = sequences[i].keep_from, len(sequences[i].ids)
            part = row[first:last].float()
            end = done + len(part)
            acts[done:end] = part.half()
            norm[done:end] = part.norm(dim=-1)
            seq[done:end] = i
            pos[done:end] = torch.arange(first, last)
            done = end
        if n % 20 == 0:
            print(f"{done}/{total} tokens, {time.monotonic() - start:.0f} s", flush=True)
    return {"acts": acts, "norm": norm, "seq": seq, "pos": pos}


def describe_norms(columns: dict[str, Tensor], kinds: Tensor) -> str:
    """Quantiles of the residual norm per kind of text, as a small table."""
    lines = [f"{'kind':<10} {'tokens':>8} {'p1':>7} {'p25':>7} {'p50':>7} {'p75':>7} {'p99':>7}"]
    for k, name in enumerate(KINDS):
        values = columns["norm"][kinds[columns["seq"].long()] == k]
        if len(values):
            q = [
                float(values.kthvalue(max(1, int(p * len(values)))).values)
                for p in (0.01, 0.25, 0.5, 0.75, 0.99)
            ]
            lines.append(f"{name:<10} {len(values):>8} " + " ".join(f"{v:7.1f}" for v in q))
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and collect activations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder of corpus.py")
    parser.add_argument("--width", type=int, default=192, help="longest document sequence")
    parser.add_argument("--float32", action="store_true", help="exact, at half the speed")
    args = parser.parse_args()
    model, tokenizer = load_subject(torch.float32 if args.float32 else torch.bfloat16)
    sequences = document_sequences(read_jsonl(args.work / "documents.jsonl"), tokenizer, args.width)
    sequences += chat_sequences(read_jsonl(args.work / "chat.jsonl"), tokenizer)
    columns = collect(truncate_after_layer(model), sequences, tokenizer.pad_token_id)

    kinds = torch.tensor([s.kind for s in sequences], dtype=torch.int8)
    table = describe_norms(columns, kinds)
    median = float(columns["norm"].median())
    massive = columns["norm"] > MASSIVE * median
    ordinary = ~massive
    early = int((columns["pos"][massive] == 1).sum())
    report = (
        f"{table}\nmedian {median:.2f}; dropped {int(massive.sum())} massive tokens, "
        f"{early} of them at position 1"
    )
    print(report, flush=True)
    write_text(args.work / "norms.txt", report + "\n")
    offsets = torch.tensor([0] + [len(s.ids) for s in sequences]).cumsum(0)
    tensors = {name: column[ordinary].contiguous() for name, column in columns.items()} | {
        "ids": torch.tensor([t for s in sequences for t in s.ids], dtype=torch.int32),
        "offsets": offsets,
        "keep_from": torch.tensor([s.keep_from for s in sequences], dtype=torch.int16),
        "kind": kinds,
        "held_out": torch.tensor([s.held_out for s in sequences], dtype=torch.bool),
    }
    part = args.work / "activations.safetensors.part"
    save_file(tensors, part)
    part.replace(args.work / "activations.safetensors")


if __name__ == "__main__":
    main()
