"""Measure the exported SAE on held-out text and on the subject's own chat answers.

Everything runs in float32. Explained variance is 1 - sum |x - d(f(x))|^2 / sum |x - mean|^2,
over tokens that were never trained on; position 0, massive tokens and, in chats, the prompt
are left out, as in training. The loss is the next-token loss at those positions, with the
reconstruction spliced in there, and with the residual replaced by its mean for comparison.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from activations import KINDS
from sae_lens import SAE
from safetensors import safe_open
from subject import LAYER, MASSIVE, load_subject, pad_batch, write_text
from torch import Tensor


def held_out_sequences(path: Path, kind: str, tokens: int) -> list[tuple[list[int], int]]:
    """Held-out sequences of one kind: token ids and the first position that counts.

    Args:
        path: File written by activations.py.
        kind: One of KINDS, or "documents" for all but the chats.
        tokens: Stop after about so many tokens.
    """
    with safe_open(path, "pt") as file:
        ids, offsets = file.get_tensor("ids").tolist(), file.get_tensor("offsets").tolist()
        keep_from = file.get_tensor("keep_from").tolist()
        kinds, held_out = file.get_tensor("kind").tolist(), file.get_tensor("held_out").tolist()
    wanted = {"chat", "task"} ^ set(KINDS) if kind == "documents" else {kind}
    chosen = [i for i, h in enumerate(held_out) if h and KINDS[kinds[i]] in wanted]
    # every n-th sequence, so that a cut keeps all sources
    total = sum(offsets[i + 1] - offsets[i] for i in chosen)
    step = max(1, -(-total // tokens))
    return [(ids[offsets[i] : offsets[i + 1]], keep_from[i]) for i in chosen[::step]]


class Splice:
    """Forward hook that records or replaces a layer's output at chosen positions."""

    def __init__(self, sae: Any) -> None:
        self.sae = sae
        self.mode = "record"
        self.where = torch.empty(0)
        self.mean = torch.empty(0)
        self.rows: list[Tensor] = []

    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        """Record the chosen positions, or replace them."""
        hidden = output[0] if isinstance(output, tuple) else output
        chosen = self.where
        if self.mode == "record":
            self.rows.append(hidden[chosen].clone())
            return None
        hidden = hidden.clone()
        if self.mode == "sae":
            hidden[chosen] = self.sae(hidden[chosen])
        else:
            hidden[chosen] = self.mean
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def losses(model: Any, ids: Tensor, where: Tensor) -> Tensor:
    """Next-token losses predicted at the positions in ``where`` (the last one excluded)."""
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
    )
    return loss[where[:, :-1] & where[:, 1:]]


@torch.inference_mode()
def measure(
    model: Any, sae: Any, sequences: list[tuple[list[int], int]], limit: float, mean: Tensor
) -> tuple[dict[str, float], Tensor]:
    """Measure one set of sequences.

    Args:
        model: The subject.
        sae: The exported SAE.
        sequences: Token ids and first position that counts.
        limit: Norm above which a token is massive.
        mean: Replacement of the residual in the mean ablation.

    Returns:
        The numbers, and which latents fired.
    """
    splice = Splice(sae)
    splice.mean = mean
    handle = model.model.layers[LAYER].register_forward_hook(splice)
    sums: dict[str, list[Tensor]] = {"record": [], "sae": [], "mean": []}
    order = sorted(sequences, key=lambda s: len(s[0]))
    for i in range(0, len(order), 16):
        part = order[i : i + 16]
        ids, mask = pad_batch([s[0] for s in part], 2, left=False)
        where = mask.bool()
        for row, (_, first) in enumerate(part):
            where[row, :first] = False
        splice.where = where
        for mode in sums:
            splice.mode = mode
            sums[mode].append(losses(model, ids, where))
    handle.remove()
    x = torch.cat(splice.rows)
    x = x[x.norm(dim=-1) <= limit]
    f = torch.cat([sae.encode(part) for part in torch.split(x, 2048)])
    error = x - sae.decode(f)
    centred = x - x.mean(0)
    per_dim = centred.pow(2).sum(0)
    loss = {mode: float(torch.cat(parts).mean()) for mode, parts in sums.items()}
    return {
        "tokens": len(x),
        "explained_variance": float(1 - error.pow(2).sum() / centred.pow(2).sum()),
        "share_of_largest_dimension": float(per_dim.max() / per_dim.sum()),
        "explained_variance_without_it": float(
            1
            - (error.pow(2).sum(0).sum() - error.pow(2).sum(0)[per_dim.argmax()])
            / (per_dim.sum() - per_dim.max())
        ),
        "l0": float((f > 0).float().sum(-1).mean()),
        "median_norm": float(x.norm(dim=-1).median()),
        "loss": loss["record"],
        "loss_with_sae": loss["sae"],
        "loss_with_mean": loss["mean"],
        "loss_recovered": (loss["mean"] - loss["sae"]) / (loss["mean"] - loss["record"]),
    }, (f > 0).any(0)


@torch.inference_mode()
def dead_latents(path: Path, sae: Any) -> dict[str, float]:
    """Latents that never fire on the held-out tokens, and on all collected tokens."""
    with safe_open(path, "pt") as file:
        acts = file.get_tensor("acts")
        held_out = file.get_tensor("held_out")[file.get_tensor("seq").long()]
    counts = torch.zeros(sae.cfg.d_sae)
    on_held_out = torch.zeros(sae.cfg.d_sae)
    for part, held in zip(torch.split(acts, 8192), torch.split(held_out, 8192), strict=True):
        fired = sae.encode(part.float()) > 0
        counts += fired.sum(0)
        on_held_out += fired[held].sum(0)
    return {
        "tokens": len(acts),
        "dead": int((counts == 0).sum()),
        "held_out_tokens": int(held_out.sum()),
        "dead_on_held_out": int((on_held_out == 0).sum()),
        "rarer_than_0.005_percent": int((counts < 5e-5 * len(acts)).sum()),
        "denser_than_2_percent": int((counts > 0.02 * len(acts)).sum()),
        "denser_than_10_percent": int((counts > 0.1 * len(acts)).sum()),
    }


def main() -> None:
    """Parse the command line and print the measures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder of activations.py")
    parser.add_argument("--sae", type=Path, required=True, help="folder of the exported SAE")
    parser.add_argument("--tokens", type=int, default=9000, help="tokens per set, about")
    args = parser.parse_args()
    path = args.work / "activations.safetensors"
    sae = SAE.load_from_disk(str(args.sae), dtype="float32")
    model, _ = load_subject()
    with safe_open(path, "pt") as file:
        limit = MASSIVE * float(file.get_tensor("norm").median())
        mean = file.get_slice("acts")[:200_000].float().mean(0)
    report: dict[str, Any] = {}
    for kind in ("task", "chat", "documents"):
        sequences = held_out_sequences(path, kind, args.tokens)
        report[kind], _ = measure(model, sae, sequences, limit, mean)
        print(kind, json.dumps(report[kind]), flush=True)
    report["latents"] = dead_latents(path, sae)
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    write_text(args.work / "evaluation.json", text)


if __name__ == "__main__":
    main()
