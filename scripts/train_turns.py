"""Train the learned half of the phrase detector (`esr_eval.scorers.turns`).

    python scripts/train_turns.py esr_eval/data/turns      # some ten minutes on 2 cores

Snippets in `scripts/turns` were written by hand for this project, by others than those who wrote
the passages that measure the detector: {"before", "turn", "after"} holds a restart, {"text"} none.
The passages marked "dev" are trained on as well, never "fresh" or "held_out". The lower half of
MiniLM stays as it is; its upper three layers get a low-rank adapter.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from esr_eval._util.minilm import PACKAGE, load_encoder, weights_folder
from esr_eval.data.passages import read_passages
from esr_eval.scorers.turns import TurnEncoder, places, pooled

HERE = Path(__file__).parent
FROZEN = 3
BATCH = 32
HARD = 0.02
"""Score from which a place without a restart is learned in the second round."""
NO_TASK = 0.15
"""Share of examples whose task is left out, as it is not always known."""


class Text(NamedTuple):
    """A text, and where its restarts begin and end."""

    task: str
    text: str
    turns: list[tuple[int, int]]


def snippets() -> list[Text]:
    """What was written to train on, and answers of the embedded subject without a restart."""
    found = []
    for file in sorted((HERE / "turns").glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            one = json.loads(line)
            if "turn" in one:
                start = len(one["before"])
                text = one["before"] + one["turn"] + one["after"]
                found.append(Text(one["task"], text, [(start, start + len(one["turn"]))]))
            else:
                found.append(Text(one["task"], one["text"], []))
    return found


def passages() -> list[Text]:
    """The passages that anything may be fitted to."""
    found = []
    for one in read_passages():
        if one.split != "dev":
            continue
        later = zip(one.starts()[1:], one.attempts[1:], strict=True)
        turns = [(at, at + len(attempt.first)) for at, attempt in later]
        found.append(Text(one.task, one.text, turns))
    return found


def examples(texts: list[Text]) -> list[tuple[Text, int, float]]:
    """Places with and without a restart; those inside of a restart's words are neither."""
    found: list[tuple[Text, int, float]] = []
    for text in texts:
        at = places(text.text)
        turns = set()
        for start, _ in text.turns:
            near = [place for place in at if start - 8 <= place <= start + 45]
            if near:
                turns.add(min(near, key=lambda place: abs(place - start)))
        others = [
            place
            for place in at
            if not any(start - 12 <= place <= end + 50 for start, end in text.turns)
        ]
        found += [(text, place, 1.0) for place in sorted(turns)]
        found += [(text, place, 0.0) for place in others]
    return found


def attention(mask: torch.Tensor) -> torch.Tensor:
    """What BERT adds to attention where a row is padded."""
    return (1 - mask)[:, None, None, :] * -1e9


def through(layers: Any, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """States after some layers."""
    for layer in layers:
        out = layer(states, attention(mask))
        states = out[0] if isinstance(out, tuple) else out
    return states


def by_length(rows: torch.Tensor, lengths: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Batches of rows of like length, which cost less."""
    return list(rows[torch.argsort(lengths[rows])].split(size))


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--epochs", default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, epochs: int, seed: int) -> None:
    """Train, and write adapter and head into the folder."""
    draw = random.Random(seed)  # noqa: S311 - a draw of examples, no secret
    torch.manual_seed(seed)
    chosen = examples([*passages(), *snippets()])
    reader = TurnEncoder(weights_folder())
    rows = [
        reader.tokens(text.text, place, "" if draw.random() < NO_TASK else text.task)
        for text, place, _ in chosen
    ]
    wanted = torch.tensor([value for _, _, value in chosen])
    click.echo(f"{len(rows):,} places, {int(wanted.sum()):,} of them restarts")
    net = get_peft_model(
        load_encoder(weights_folder()),
        LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=["query", "key", "value", "dense"],
            layers_to_transform=list(range(FROZEN, 6)),
            layers_pattern="layer",
        ),
    )
    layers = net.base_model.model.encoder.layer
    embed = net.base_model.model.embeddings
    head = torch.nn.Linear(2 * net.base_model.model.config.hidden_size, 1)
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    lengths = mask.sum(1).int()
    # What the frozen layers give is the same in every epoch.
    low = torch.zeros(len(rows), longest, 384, dtype=torch.half)
    net.eval()
    with torch.inference_mode():
        for batch in by_length(torch.arange(len(rows)), lengths, 128):
            size = int(lengths[batch].max())
            part = mask[batch, :size]
            low[batch, :size] = through(
                layers[:FROZEN], embed(input_ids=ids[batch, :size]), part
            ).half()
    low = low.clone()

    def logits(batch: torch.Tensor) -> torch.Tensor:
        size = int(lengths[batch].max())
        part = mask[batch, :size]
        states = through(layers[FROZEN:], low[batch, :size].float(), part)
        found: torch.Tensor = head(pooled(states, part))[:, 0]
        return found

    def fit(kept: torch.Tensor, rounds: int, rate: float) -> None:
        optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
        steps = rounds * (len(kept) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=steps + 1, pct_start=0.1
        )
        for epoch in range(rounds):
            net.train()
            order = kept[torch.randperm(len(kept))]
            batches = [
                batch
                for at in range(0, len(order), 8 * BATCH)
                for batch in by_length(order[at : at + 8 * BATCH], lengths, BATCH)
                if len(batch) == BATCH
            ]
            draw.shuffle(batches)
            total = 0.0
            for batch in batches:
                loss = loss_of(logits(batch), wanted[batch])
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                if schedule.last_epoch < steps:
                    schedule.step()
                total += float(loss)
            click.echo(f"epoch {epoch + 1} of {rounds}: loss {total / len(batches):.4f}")

    weights = [p for p in [*net.parameters(), *head.parameters()] if p.requires_grad]
    loss_of = torch.nn.BCEWithLogitsLoss()
    restarts, others = wanted.nonzero()[:, 0], (wanted == 0).nonzero()[:, 0]
    fit(
        torch.cat([restarts, others[torch.randperm(len(others))[: 5 * len(restarts)]]]),
        epochs,
        1e-3,
    )
    # Most places are easy: those that still look like a restart are what is left to learn.
    net.eval()
    with torch.inference_mode():
        scores = torch.zeros(len(rows))
        for batch in by_length(others, lengths, 128):
            scores[batch] = logits(batch).sigmoid()
    hard = others[scores[others] > HARD]
    easy = others[torch.randperm(len(others))[: 3 * len(restarts)]]
    click.echo(f"{len(hard):,} of {len(others):,} other places are hard")
    fit(torch.cat([restarts, hard, easy]).unique(), epochs, 7e-4)
    folder.mkdir(parents=True, exist_ok=True)
    # The base's folder is this machine's: no reader has it.
    net.peft_config["default"].base_model_name_or_path = PACKAGE
    net.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    save_file(
        {name: value.clone() for name, value in head.state_dict().items()},
        folder / "head.safetensors",
    )


if __name__ == "__main__":
    main()
