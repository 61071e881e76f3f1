"""Train the embedded subject's SAE and export it for raw residuals.

A BatchTopK SAE is trained with sae-lens on mean-free activations scaled to norm sqrt(d).
Both steps, and the decoder's norms, are then folded into the exported weights: the exported
JumpReLU SAE reads raw layer-14 residuals, its decoder rows have length 1, and an activation
is the length of what the latent adds to the residual. One latent is computed alone as
``f = z if z > threshold[i] else 0`` with ``z = x @ W_enc[:, i] + b_enc[i]``.

Needs sae-lens beside the activations of activations.py. No GPU, no network.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from activations import KINDS
from safetensors import safe_open
from safetensors.torch import save_file
from subject import D_MODEL, LAYER, MODEL_ID, SEED, write_text
from torch import Tensor

D_SAE = 4096


def load_training_rows(path: Path, chat_weight: int) -> tuple[Tensor, Tensor]:
    """Load the activations and the rows to train on.

    Args:
        path: File written by activations.py.
        chat_weight: How often an epoch shows each token of a chat answer.

    Returns:
        All activations (float16) and the row numbers of one epoch.
    """
    with safe_open(path, "pt") as file:
        acts = file.get_tensor("acts")
        seq = file.get_tensor("seq").long()
        held_out = file.get_tensor("held_out")[seq]
        chat = (file.get_tensor("kind")[seq] == KINDS.index("chat")) & ~held_out
    rows = torch.nonzero(~held_out).squeeze(1)
    extra = torch.nonzero(chat).squeeze(1).repeat(chat_weight - 1)
    return acts, torch.cat([rows, extra])


def mean_and_scale(acts: Tensor, rows: Tensor) -> tuple[Tensor, float]:
    """Mean of the training rows, and the factor that scales their mean norm to sqrt(d)."""
    total, norm = torch.zeros(D_MODEL, dtype=torch.float64), 0.0
    for part in torch.split(rows, 65536):
        total += acts[part].double().sum(0)
    mean = (total / len(rows)).float()
    for part in torch.split(rows, 65536):
        norm += float((acts[part].float() - mean).norm(dim=-1).sum())
    return mean, math.sqrt(D_MODEL) / (norm / len(rows))


def batches(
    acts: Tensor, rows: Tensor, mean: Tensor, scale: float, batch: int, seed: int
) -> Iterator[Tensor]:
    """Yield shuffled, normalised batches for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)]
        for i in range(0, len(order) - batch + 1, batch):
            yield (acts[order[i : i + batch]].float() - mean) * scale


def train(args: argparse.Namespace, acts: Tensor, rows: Tensor) -> tuple[Any, Tensor, float]:
    """Train the SAE.

    Returns:
        The trained SAE with the mean and the scale of its input.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(args.seed)
    mean, scale = mean_and_scale(acts, rows)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=D_MODEL,
            d_sae=D_SAE,
            k=args.k,
            apply_b_dec_to_input=False,
            aux_loss_coefficient=args.aux,
        )
    )
    steps = args.samples // args.batch
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            # explicit, or sae-lens fills it in; the constant schedule decays to 0 at the end
            lr_end=args.lr / 100,
            lr_scheduler_name="constant",
            lr_warm_up_steps=min(200, steps // 10),
            lr_decay_steps=steps // 3,
            dead_feature_window=args.dead_window,
            autocast=args.bf16,
        ),
        sae=sae,
        data_provider=batches(acts, rows, mean, scale, args.batch, args.seed),
    )
    return trainer.fit(), mean, scale


@torch.no_grad()
def fold(sae: Any, mean: Tensor, scale: float) -> dict[str, Tensor]:
    """Fold input normalisation and decoder norms into JumpReLU weights.

    The SAE was trained on y = (x - mean) * scale with selection by z * |W_dec|. In residual
    units the activation is z * |W_dec| / scale, along a decoder row of length 1.
    """
    w_enc, b_enc = sae.W_enc.double(), sae.b_enc.double()
    w_dec, b_dec = sae.W_dec.double(), sae.b_dec.double()
    norms = w_dec.norm(dim=-1)
    threshold = float(sae.topk_threshold) / scale
    mean = mean.double()
    return {
        "W_enc": (w_enc * norms).float(),
        "b_enc": ((b_enc / scale - mean @ w_enc) * norms).float(),
        "W_dec": (w_dec / norms.unsqueeze(1)).float(),
        "b_dec": (b_dec / scale + mean).float(),
        "threshold": torch.full((D_SAE,), threshold, dtype=torch.float32),
    }


def export(weights: dict[str, Tensor], folder: Path, metadata: dict[str, Any]) -> None:
    """Write the inference SAE in the layout of sae-lens' ``save_inference_model``.

    The two matrices are stored in float16, the vectors in float32: biases and thresholds
    cost nothing, and half precision would show there first.
    """
    from sae_lens.saes.jumprelu_sae import JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = JumpReLUSAEConfig(
        d_in=D_MODEL,
        d_sae=D_SAE,
        dtype="float32",
        apply_b_dec_to_input=False,
        metadata=SAEMetadata(**metadata),
    )
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (w.half() if name in ("W_enc", "W_dec") else w).contiguous()
        for name, w in weights.items()
    }
    part = folder / "sae_weights.safetensors.part"
    save_file(stored, part)
    # the file is made by a temporary name; safetensors itself creates it unreadable to others
    part.chmod(0o644)
    part.replace(folder / "sae_weights.safetensors")
    write_text(folder / "cfg.json", json.dumps(config.to_dict(), indent=2) + "\n")


@torch.no_grad()
def check_fold(sae: Any, mean: Tensor, scale: float, folder: Path, x: Tensor) -> dict[str, float]:
    """Compare the exported SAE, loaded from disk, with the trained one on raw residuals."""
    from sae_lens import SAE

    loaded = SAE.load_from_disk(str(folder), dtype="float32")
    z = ((x - mean) * scale) @ sae.W_enc + sae.b_enc
    z = z * sae.W_dec.norm(dim=-1)
    f = torch.where(z > sae.topk_threshold.float(), z, 0.0)
    trained = sae.decode(f) / scale + mean
    mine = loaded.encode(x)
    variance = (x - x.mean(0)).pow(2).sum()
    return {
        "l0_trained": float((f > 0).float().sum(-1).mean()),
        "l0_exported": float((mine > 0).float().sum(-1).mean()),
        "different_active": float(((mine > 0) != (f > 0)).float().sum(-1).mean()),
        "largest_f_difference": float((mine - f / scale)[(mine > 0) & (f > 0)].abs().max()),
        "variance_trained": float(1 - (x - trained).pow(2).sum() / variance),
        "variance_exported": float(1 - (x - loaded.decode(mine)).pow(2).sum() / variance),
        "decoder_norm_error": float((loaded.W_dec.norm(dim=-1) - 1).abs().max()),
    }


def main() -> None:
    """Parse the command line, train, export and check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder of activations.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported SAE")
    parser.add_argument("--samples", type=int, default=3_000_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--k", type=float, default=40.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--aux", type=float, default=1.0)
    parser.add_argument("--dead-window", type=int, default=100, help="in steps")
    parser.add_argument("--chat-weight", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="autocast the forward pass")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    start = time.monotonic()
    acts, rows = load_training_rows(args.work / "activations.safetensors", args.chat_weight)
    print(f"{len(acts)} activations, {len(rows)} rows an epoch", flush=True)
    sae, mean, scale = train(args, acts, rows)
    settings = {
        "model_name": MODEL_ID,
        "hook_name": f"model.layers.{LAYER}",
        "hook_layer": LAYER,
        "prepend_bos": True,
        "training": {
            "architecture": "batchtopk",
            "k": args.k,
            "samples": args.samples // args.batch * args.batch,
            "batch": args.batch,
            "lr": args.lr,
            "seed": args.seed,
            "rows_an_epoch": len(rows),
            "input_scale": scale,
        },
    }
    export(fold(sae, mean, scale), args.out, settings)
    sample = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:2048]]
    report = check_fold(sae, mean, scale, args.out, acts[sample].float())
    print(json.dumps(report | {"seconds": round(time.monotonic() - start)}, indent=2))


if __name__ == "__main__":
    main()
