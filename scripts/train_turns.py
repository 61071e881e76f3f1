"""Train the learned half of the phrase detector (`esr_eval.scorers.turns`).

    python scripts/train_turns.py esr_eval/data/turns      # some twenty minutes on 2 cores

Snippets in `scripts/turns` were written by hand for this project, by others than those who wrote
the passages that measure the detector: {"before", "turn", "after"} holds a restart, {"text"} none.
The passages marked "dev" are trained on as well, never "fresh" or "held_out". The lower layers of
MiniLM stay as they are; the upper ones get a low-rank adapter. Some texts are shown without
punctuation, and some behind a piece of another one, as steered models write both.
"""

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from esr_eval._util.minilm import PACKAGE, load_encoder, weights_folder
from esr_eval.data.passages import read_passages
from esr_eval.scorers.turns import ASKED, WINDOW, TurnEncoder, framed, padded, places

HERE = Path(__file__).parent
FROZEN = 2
RANK = 32
BATCH = 16
RATE = 1e-3
RESTART = 3.0
"""What a place with a restart weighs against one without."""
BETWEEN = 0.3
"""Share of words between places that are learned as well."""
ANSWERS = 420
"""Ordinary answers that are learned from; with all of them most of the time goes there."""
NO_TASK, BARE, BEHIND = 0.15, 0.12, 0.15
"""Shares of texts whose task is left out, as it is not always known; that lose their marks; and
that follow a piece of another text."""
SHORT = 700
"""Characters of a text that still may follow a piece of another one."""


class Text(NamedTuple):
    """A text, and where its restarts begin and end."""

    task: str
    text: str
    turns: list[tuple[int, int]]


def snippets(draw: random.Random) -> list[Text]:
    """What was written to train on, and answers of the embedded subject without a restart."""
    found = []
    for file in sorted((HERE / "turns").glob("*.jsonl")):
        lines = file.read_text("utf-8").splitlines()
        for line in draw.sample(lines, ANSWERS) if file.stem == "answers" else lines:
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


def varied(text: Text, others: list[Text], draw: random.Random) -> Text:
    """A text as it is seen in one epoch."""
    words, turns = text.text, text.turns
    if draw.random() < BARE:
        words = re.sub(r"[.,;:!?()\[\]\"“”#*\-—–…\n]", " ", words).lower()
        words = words if len(words) == len(text.text) else text.text
    if draw.random() < BEHIND and len(words) < SHORT:
        other = draw.choice(others).text[: draw.randrange(100, 450)].rsplit(" ", 1)[0]
        before = other + draw.choice([" ", "\n\n", ". "])
        words = before + words
        turns = [(start + len(before), end + len(before)) for start, end in turns]
    return Text("" if draw.random() < NO_TASK else text.task, words, turns)


def example(text: Text, reader: TurnEncoder, draw: random.Random) -> tuple[list[int], list[float]]:
    """Token ids, and for each whether a restart begins there: 1, 0, or -1 where nobody knows.

    Words inside of a restart and just behind it are neither.
    """
    asked, tokens = reader.tokens(text.task).ids[:ASKED], reader.tokens(text.text)
    at = places(text.text)
    words = [match.start() for match in re.finditer(r"\S+", text.text)]
    wanted = [-1.0] * len(tokens.ids)
    for place in {*at, *(word for word in words if draw.random() < BETWEEN)}:
        if not any(start - 12 <= place <= end + 50 for start, end in text.turns):
            wanted[tokens.at(place)] = 0.0
    for start, _ in text.turns:
        near = [place for place in at if start - 8 <= place <= start + 45]
        place = min(near, key=lambda place: abs(place - start), default=start)
        marks = re.compile(r"[\s#*>_\-•\"'(“\[]*").match(text.text, place)
        wanted[tokens.at(marks.end() if marks else place)] = 1.0
    room = WINDOW - len(asked) - 3
    low = 0
    if len(wanted) > room:
        turned = [index for index, value in enumerate(wanted) if value == 1.0]
        middle = draw.choice(turned) if turned else draw.randrange(len(wanted))
        low = min(max(middle - draw.randrange(20, room - 20), 0), len(wanted) - room)
    ids = framed(asked, tokens.ids[low : low + room])
    return ids, [-1.0] * (len(asked) + 2) + wanted[low : low + room] + [-1.0]


class Reader(torch.nn.Module):
    """MiniLM with an adapter in its upper layers, and a head that reads each token."""

    def __init__(self) -> None:
        super().__init__()
        self.net = get_peft_model(
            load_encoder(weights_folder()),
            LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                lora_dropout=0.1,
                target_modules=["query", "key", "value", "dense"],
                layers_to_transform=list(range(FROZEN, 6)),
                layers_pattern="layer",
            ),
        )
        self.head = torch.nn.Linear(self.net.base_model.model.config.hidden_size, 1)
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits, [rows, tokens]; in 16 bits, which halves the time on CPUs that have them."""
        model = self.net.base_model.model
        padding = (1 - mask)[:, None, None, :] * -1e9
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                states = through(
                    model.encoder.layer[:FROZEN], model.embeddings(input_ids=ids), padding
                )
            states = through(model.encoder.layer[FROZEN:], states, padding)
            found: torch.Tensor = self.head(self.drop(states))[..., 0].float()
        return found


def through(layers: Any, states: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """States after some layers."""
    for layer in layers:
        out = layer(states, padding)
        states = out[0] if isinstance(out, tuple) else out
    return states


def batches(
    rows: list[tuple[list[int], list[float]]], draw: random.Random
) -> list[list[tuple[list[int], list[float]]]]:
    """Batches of rows of like length, which cost less, in no order."""
    draw.shuffle(rows)
    found = []
    for at in range(0, len(rows), 12 * BATCH):
        part = sorted(rows[at : at + 12 * BATCH], key=lambda row: len(row[0]))
        found += [part[low : low + BATCH] for low in range(0, len(part), BATCH)]
    draw.shuffle(found)
    return found


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--epochs", default=7, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, epochs: int, seed: int) -> None:
    """Train, and write adapter and head into the folder."""
    draw = random.Random(seed)  # noqa: S311 - a draw of examples, no secret
    torch.manual_seed(seed)
    texts = [*passages(), *snippets(draw)]
    without = [text for text in texts if not text.turns]
    click.echo(f"{len(texts):,} texts, {len(without):,} of them without a restart")
    tokens, reader = TurnEncoder(weights_folder()), Reader()
    weights = [one for one in reader.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    steps = epochs * -(-len(texts) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, total_steps=steps + 1, pct_start=0.1
    )
    loss_of = torch.nn.BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor(RESTART))
    for epoch in range(epochs):
        reader.train()
        rows = [example(varied(text, without, draw), tokens, draw) for text in texts]
        total = 0.0
        for batch in batches(rows, draw):
            ids, mask = padded([row for row, _ in batch])
            wanted = torch.full(ids.shape, -1.0)
            for index, (_, values) in enumerate(batch):
                wanted[index, : len(values)] = torch.tensor(values)
            known = wanted >= 0
            loss = loss_of(reader(ids, mask)[known], wanted[known]) / (2 * BATCH)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        click.echo(f"epoch {epoch + 1} of {epochs}: loss {total * BATCH / len(texts):.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    # The base's folder is this machine's: no reader has it.
    reader.net.peft_config["default"].base_model_name_or_path = PACKAGE
    reader.net.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    adapter = folder / "adapter_model.safetensors"
    save_file({name: value.half() for name, value in load_file(adapter).items()}, adapter)
    save_file(
        {name: value.clone() for name, value in reader.head.state_dict().items()},
        folder / "head.safetensors",
    )


if __name__ == "__main__":
    main()
