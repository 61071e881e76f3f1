"""List what makes each latent of the exported SAE fire, to label it by.

Reads the activations of activations.py and writes contexts.jsonl into the work folder: for
every latent its firing rate, its strongest contexts (one per sequence) and how much these
have in common (mean cosine similarity of their MiniLM embeddings). Latents that fire on a
task prompt of the evaluation, or too often or too rarely, are marked as not eligible.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from activations import KINDS
from sae_lens import SAE
from safetensors import safe_open
from subject import (
    Embedder,
    chat_ids,
    load_subject,
    task_prompts,
    truncate_after_layer,
    write_jsonl,
)
from torch import Tensor

TOP = 32
SHOWN = 8
DENSEST, RAREST = 0.02, 5e-5


@torch.inference_mode()
def strongest_rows(acts: Tensor, sae: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Firing counts, and the values and rows of every latent's strongest activations."""
    counts = torch.zeros(sae.cfg.d_sae, dtype=torch.long)
    values = torch.zeros(TOP, sae.cfg.d_sae)
    rows = torch.zeros(TOP, sae.cfg.d_sae, dtype=torch.long)
    start = 0
    for part in torch.split(acts, 16384):
        f = sae.encode(part.float())
        counts += (f > 0).sum(0)
        v, r = f.topk(min(TOP, len(f)), dim=0)
        both_v, both_r = torch.cat([values, v]), torch.cat([rows, r + start])
        values, order = both_v.topk(TOP, dim=0)
        rows = both_r.gather(0, order)
        start += len(part)
    return counts, values, rows


@torch.inference_mode()
def fires_on_tasks(sae: Any, prompts: list[str]) -> tuple[Tensor, Tensor, Any]:
    """Largest activation on any task prompt, without and at position 0, and the tokenizer."""
    model, tokenizer = load_subject()
    stack = truncate_after_layer(model)
    largest, begin = torch.zeros(sae.cfg.d_sae), torch.zeros(sae.cfg.d_sae)
    for prompt in prompts:
        ids = torch.tensor([chat_ids(tokenizer, prompt)])
        f = sae.encode(stack(input_ids=ids, use_cache=False).last_hidden_state[0].float())
        largest = torch.maximum(largest, f[1:].amax(0))
        begin = torch.maximum(begin, f[0])
    return largest, begin, tokenizer


class Contexts:
    """Text around single activations."""

    def __init__(self, path: Path, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        with safe_open(path, "pt") as file:
            self.seq, self.pos = file.get_tensor("seq").long(), file.get_tensor("pos").long()
            self.ids, self.offsets = file.get_tensor("ids"), file.get_tensor("offsets")
            self.kind = file.get_tensor("kind")

    def token(self, row: int) -> str:
        """The token at an activation."""
        at = int(self.offsets[self.seq[row]] + self.pos[row])
        return str(self.tokenizer.decode([int(self.ids[at])]))

    def around(self, row: int, before: int = 14, after: int = 6) -> str:
        """The text around an activation, its token in double brackets."""
        seq = int(self.seq[row])
        first, last = int(self.offsets[seq]), int(self.offsets[seq + 1])
        at = first + int(self.pos[row])
        left = self.ids[max(first + 1, at - before) : at].tolist()
        right = self.ids[at + 1 : min(last, at + 1 + after)].tolist()
        text = f"{self.tokenizer.decode(left)}[[{self.token(row)}]]{self.tokenizer.decode(right)}"
        return " ".join(text.split())


def describe(latent: int, values: Tensor, rows: Tensor, contexts: Contexts) -> dict[str, Any]:
    """Strongest tokens and contexts of one latent, at most one context per sequence."""
    seen: set[int] = set()
    shown: list[dict[str, Any]] = []
    tokens: Counter[str] = Counter()
    for value, row in zip(values.tolist(), rows.tolist(), strict=True):
        if value <= 0:
            break
        tokens[contexts.token(row).strip()] += 1
        seq = int(contexts.seq[row])
        if seq not in seen and len(shown) < SHOWN:
            seen.add(seq)
            shown.append(
                {
                    "f": round(value, 1),
                    "kind": KINDS[contexts.kind[seq]],
                    "text": contexts.around(row),
                }
            )
    return {"latent": latent, "tokens": tokens.most_common(12), "contexts": shown}


def add_coherence(entries: list[dict[str, Any]]) -> None:
    """Add the mean cosine similarity of every entry's contexts."""
    embed = Embedder()
    texts = [c["text"].replace("[[", "").replace("]]", "") for e in entries for c in e["contexts"]]
    vectors = embed(texts, batch=256)
    start = 0
    for entry in entries:
        n = len(entry["contexts"])
        v = vectors[start : start + n]
        start += n
        pairs = max(1, n * (n - 1))
        entry["coherence"] = round(float(((v @ v.T).sum() - n) / pairs), 3) if n > 2 else 0.0


def main() -> None:
    """Parse the command line and write contexts.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder of activations.py")
    parser.add_argument("--sae", type=Path, required=True, help="folder of the exported SAE")
    parser.add_argument("--topics", type=Path, required=True, help="the evaluation's topics.json")
    args = parser.parse_args()
    path = args.work / "activations.safetensors"
    sae = SAE.load_from_disk(str(args.sae), dtype="float32")
    with safe_open(path, "pt") as file:
        acts = file.get_tensor("acts")
    counts, values, rows = strongest_rows(acts, sae)
    density = counts / len(acts)
    del acts
    on_tasks, at_begin, tokenizer = fires_on_tasks(sae, task_prompts(args.topics))
    in_range = (density <= DENSEST) & (density >= RAREST)
    eligible = in_range & (on_tasks == 0)
    summary = {
        "in_range": int(in_range.sum()),
        "fires_on_tasks": int((on_tasks > 0).sum()),
        "fires_at_begin": int((at_begin > 0).sum()),
        "eligible": int(eligible.sum()),
        "eligible_silent_at_begin": int((eligible & (at_begin == 0)).sum()),
    }
    print(json.dumps(summary), flush=True)
    contexts = Contexts(path, tokenizer)
    entries = []
    for latent in torch.nonzero(eligible).squeeze(1).tolist():
        entry = describe(latent, values[:, latent], rows[:, latent], contexts)
        entry |= {
            "density": float(density[latent]),
            "max": round(float(values[0, latent]), 1),
            "silent_at_begin": bool(at_begin[latent] == 0),
        }
        entries.append(entry)
    write_jsonl(args.work / "contexts.jsonl", entries)
    add_coherence(entries)
    entries.sort(key=lambda e: -e["coherence"])
    write_jsonl(args.work / "contexts.jsonl", entries)


if __name__ == "__main__":
    main()
