"""Write labels.csv and confirmations.csv from the two stages of confirm_labels.py.

A label is shipped when it passed the screen and the confirmation and is not left out below:
of latents for nearly the same thing one is kept, and abstract labels or such that belong to
one of the evaluation's tasks are not wanted. confirmations.csv keeps all candidates, with
their evidence and the reason why one is not shipped.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from confirm_labels import write_csv
from subject import read_jsonl

# Chosen by hand after the confirmation, for the weights shipped with the package.
LEFT_OUT: dict[int, str] = {
    977: "near 2376",
    932: "near 2376",
    3734: "near 795",
    3337: "near 3375",
    3930: "near 3775 and 4022",
    608: "near 3896",
    973: "abstract, near a task",
    2404: "abstract",
    107: "abstract",
    2025: "abstract",
    1247: "abstract",
    2277: "abstract",
    1703: "abstract",
    2124: "near a task",
    1945: "near a task",
    164: "near a task",
    1716: "near a task",
    3877: "near a task",
    3434: "near a task",
}
MEASURES = (
    "strength",
    "answers",
    "mean_rise",
    "rank1_share",
    "top5_share",
    "median_rank",
    "task_similarity",
)


def read_rows(path: Path) -> dict[int, dict[str, str]]:
    """Read a stage's CSV by latent."""
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["index_in_sae"]): row for row in csv.DictReader(file)}


def reason(latent: int, screen: dict[str, str], confirm: dict[str, str] | None) -> str:
    """Why a candidate is not shipped; empty if it is."""
    if screen["passes"] == "0":
        return "failed the screen"
    if confirm is None or confirm["passes"] == "0":
        return "failed the confirmation"
    return LEFT_OUT.get(latent, "")


def evidence(
    latent: int, screen: dict[str, str], confirm: dict[str, str] | None, entry: dict[str, Any]
) -> dict[str, Any]:
    """One row of confirmations.csv."""
    why = reason(latent, screen, confirm)
    row: dict[str, Any] = {
        "index_in_sae": latent,
        "label": (confirm or screen)["label"],
        "shipped": int(not why),
        "reason": why,
        "firing_rate": f"{entry['density']:.2e}",
        "largest_activation": entry["max"],
        "silent_at_begin": int(entry["silent_at_begin"]),
        "top_tokens": " ".join(token for token, _ in entry["tokens"][:5]),
        "screen_label": screen["label"],
    }
    for name, stage in (("screen", screen), ("confirm", confirm)):
        row |= {f"{name}_{key}": stage[key] if stage else "" for key in MEASURES}
    return row


def main() -> None:
    """Parse the command line and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with contexts.jsonl")
    parser.add_argument("--screen", type=Path, required=True, help="CSV of the screen")
    parser.add_argument("--confirm", type=Path, required=True, help="CSV of the confirmation")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    args = parser.parse_args()
    contexts = {entry["latent"]: entry for entry in read_jsonl(args.work / "contexts.jsonl")}
    screen, confirm = read_rows(args.screen), read_rows(args.confirm)
    rows = [
        evidence(latent, row, confirm.get(latent), contexts[latent])
        for latent, row in sorted(screen.items())
    ]
    shipped = [row for row in rows if row["shipped"]]
    labels = [row["label"] for row in shipped]
    if len(set(labels)) != len(labels):
        raise ValueError("two shipped latents have the same label")
    write_csv(args.out / "confirmations.csv", rows)
    write_csv(
        args.out / "labels.csv",
        [{"index_in_sae": row["index_in_sae"], "label": row["label"]} for row in shipped],
    )
    print(f"{len(shipped)} of {len(rows)} candidates shipped")


if __name__ == "__main__":
    main()
