"""Confirm labels by effect: steering with a latent must move the answers to its label.

For every candidate (columns index_in_sae, label) the subject answers several of the
evaluation's tasks with ``x + strength * W_dec[latent]`` at layer 14, at every position but
the begin token, prompt and answer alike. An answer's similarity to every candidate label
(MiniLM) is compared with that of unsteered answers to the same task: the difference is the
*rise*. A label passes at a strength when

- its mean rise is at least ``--min-rise``,
- in at least ``--min-top`` of the answers its rise is within the top 5 % of all labels.

Stage "screen" tries all strengths; stage "confirm" repeats the best one on other tasks with
new samples, and only what passes there is shipped. Results are written as CSV, the answers
as JSON lines into the work folder.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors import safe_open
from subject import (
    MASSIVE,
    SEED,
    Embedder,
    generate,
    load_subject,
    read_jsonl,
    task_prompts,
    write_jsonl,
    write_text,
)
from torch import Tensor

# Tasks of the two stages, as positions in the list of main tasks; they do not overlap.
SCREEN_TASKS = (0, 10, 25, 33)
CONFIRM_TASKS = (4, 9, 17, 22, 26, 29)
TOP_SHARE = 0.05


def read_candidates(path: Path) -> list[dict[str, Any]]:
    """Read a CSV with columns index_in_sae, label and, for the confirm stage, strength."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "latent": int(row["index_in_sae"]),
                "label": row["label"],
                "strength": float(row["strength"]) if row.get("strength") else None,
            }
            for row in csv.DictReader(file)
        ]


def plan(
    candidates: list[dict[str, Any]], prompts: list[str], strengths: list[float], repeats: int
) -> list[dict[str, Any]]:
    """One row per answer: unsteered ones (latent -1) first, then every candidate's."""
    rows = [
        {"latent": -1, "strength": 0.0, "prompt": p} for p in prompts for _ in range(8 * repeats)
    ]
    for candidate in candidates:
        own = [candidate["strength"]] if candidate["strength"] else strengths
        rows += [
            {"latent": candidate["latent"], "strength": s, "prompt": p}
            for s in own
            for p in prompts
            for _ in range(repeats)
        ]
    return rows


def answer(
    rows: list[dict[str, Any]],
    decoder: Tensor,
    unit: float,
    out: Path,
    *,
    batch: int,
    new: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Generate all answers; resumes where an earlier run stopped.

    Args:
        rows: Planned rows; strengths are multiples of ``unit``.
        decoder: The SAE's decoder rows, of length 1.
        unit: Median residual norm.
        out: JSON lines file of finished rows.
        batch: Rows a batch.
        new: New tokens an answer.
        seed: Seed of the sampling.
    """
    done = read_jsonl(out) if out.exists() else []
    model, tokenizer = load_subject(torch.bfloat16)
    start = time.monotonic()
    for i in range(len(done), len(rows), batch):
        part = rows[i : i + batch]
        vectors = torch.stack([decoder[row["latent"]] * (row["strength"] * unit) for row in part])
        torch.manual_seed(seed + i)
        ids = generate(
            model, tokenizer, [row["prompt"] for row in part], max_new_tokens=new, vectors=vectors
        )
        done += [row | {"text": tokenizer.decode(t)} for row, t in zip(part, ids, strict=True)]
        if (i // batch) % 5 == 0 or i + batch >= len(rows):
            write_jsonl(out, done)
            print(f"{len(done)}/{len(rows)} answers, {time.monotonic() - start:.0f} s", flush=True)
    return done


def score(
    answers: list[dict[str, Any]],
    candidates: list[dict[str, Any]],
    min_rise: float,
    min_top: float,
) -> list[dict[str, Any]]:
    """Compare every steered answer with all labels.

    Returns:
        One row per candidate and strength, with its rise, its rank and whether it passes.
    """
    embed = Embedder()
    labels = sorted({c["label"] for c in candidates})
    column = {label: j for j, label in enumerate(labels)}
    label_of = {c["latent"]: c["label"] for c in candidates}
    texts = embed([a["text"] for a in answers])
    prompts = sorted({a["prompt"] for a in answers})
    to_prompts = texts @ embed(prompts).T
    on_task = [float(to_prompts[i, prompts.index(a["prompt"])]) for i, a in enumerate(answers)]
    unsteered = [on_task[i] for i, a in enumerate(answers) if a["latent"] == -1]
    print(f"similarity to the task, unsteered: {sum(unsteered) / len(unsteered):.3f}")
    similarity = texts @ embed(labels).T
    base = {
        prompt: similarity[
            [i for i, a in enumerate(answers) if a["latent"] == -1 and a["prompt"] == prompt]
        ].mean(0)
        for prompt in prompts
    }
    groups: dict[tuple[int, float], list[tuple[float, int, str, float]]] = {}
    for i, a in enumerate(answers):
        if a["latent"] not in label_of:
            continue
        rise = similarity[i] - base[a["prompt"]]
        own = rise[column[label_of[a["latent"]]]]
        rank = 1 + int((rise > own).sum())
        best = labels[int(rise.argmax())]
        groups.setdefault((a["latent"], a["strength"]), []).append(
            (float(own), rank, best, on_task[i])
        )
    top = max(1, round(TOP_SHARE * len(labels)))
    rows = []
    for (latent, strength), found in sorted(groups.items()):
        n = len(found)
        mean_rise = sum(f[0] for f in found) / n
        top_share = sum(f[1] <= top for f in found) / n
        bests = [f[2] for f in found]
        mode = max(sorted(set(bests)), key=bests.count)
        rows.append(
            {
                "index_in_sae": latent,
                "label": label_of[latent],
                "strength": strength,
                "answers": n,
                "mean_rise": round(mean_rise, 3),
                "rank1_share": round(sum(f[1] == 1 for f in found) / n, 3),
                "top5_share": round(top_share, 3),
                "median_rank": sorted(f[1] for f in found)[n // 2],
                "commonest_first": mode,
                "task_similarity": round(sum(f[3] for f in found) / n, 3),
                "passes": int(mean_rise >= min_rise and top_share >= min_top),
            }
        )
    return rows


def best_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The strength of every latent where its label does best."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        key = (row["passes"], row["top5_share"] + row["rank1_share"], row["mean_rise"])
        old = best.get(row["index_in_sae"])
        if old is None or key > (
            old["passes"],
            old["top5_share"] + old["rank1_share"],
            old["mean_rise"],
        ):
            best[row["index_in_sae"]] = row
    return list(best.values())


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["screen", "confirm"])
    parser.add_argument("--work", type=Path, required=True, help="work folder of activations.py")
    parser.add_argument("--sae", type=Path, required=True, help="folder of the exported SAE")
    parser.add_argument("--topics", type=Path, required=True, help="the evaluation's topics.json")
    parser.add_argument("--candidates", type=Path, required=True, help="CSV of labels to test")
    parser.add_argument("--name", default="", help="suffix of the files written")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.35, 0.5, 0.65])
    parser.add_argument("--repeats", type=int, default=1, help="answers per task and strength")
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--new-tokens", type=int, default=60)
    parser.add_argument("--min-rise", type=float, default=0.08)
    parser.add_argument("--min-top", type=float, default=0.5)
    parser.add_argument("--score-only", action="store_true", help="no new answers")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    stem = args.stage + args.name
    out = args.work / f"{stem}.jsonl"
    candidates = read_candidates(args.candidates)
    if args.score_only:
        answers = read_jsonl(out)
    else:
        sae = SAE.load_from_disk(str(args.sae), dtype="float32")
        with safe_open(args.work / "activations.safetensors", "pt") as file:
            norm = file.get_tensor("norm")
        unit = float(norm[norm < MASSIVE * norm.median()].median())
        print(f"median residual norm {unit:.2f}", flush=True)
        tasks = task_prompts(args.topics)
        chosen = SCREEN_TASKS if args.stage == "screen" else CONFIRM_TASKS
        rows = plan(candidates, [tasks[i] for i in chosen], args.strengths, args.repeats)
        seed = args.seed + (0 if args.stage == "screen" else 1_000_000)
        answers = answer(
            rows, sae.W_dec.detach(), unit, out, batch=args.batch, new=args.new_tokens, seed=seed
        )
    rows = score(answers, candidates, args.min_rise, args.min_top)
    write_csv(args.work / f"{stem}.all.csv", rows)
    best = best_rows(rows)
    write_csv(args.work / f"{stem}.csv", best)
    passed = sum(row["passes"] for row in best)
    print(f"{passed} of {len(best)} labels pass")


if __name__ == "__main__":
    main()
