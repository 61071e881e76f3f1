"""Train the learned half of the phrase detector (`esr_eval.scorers.turns`).

    python scripts/train_turns.py esr_eval/data/turns   # minutes on a GPU, 3 hours on 2 cores

What ships was trained in three steps: the 15 lowest layers first, on a GPU; then, beginning with
these (`--start`), layers 10 to 19 (`--fixed 10 --epochs 3 --rate 5e-4`), on 2 cores, and in the
same way once more (`--fixed 10 --epochs 4 --rate 5e-4 --share 0.35`). Only the last step has seen
the latest texts (`later.jsonl`) and texts with a restart's words taken out (`WORDLESS`).

Snippets in `scripts/turns` were written by hand for this project, by others than those who wrote
the passages that measure the detector: {"before", "turn", "after"} holds a restart, {"text"} none.
Those with a "pair" are two texts that share most of their words, of which one starts over. Whole
passages by such writers are in `scripts/turns/learned`; a fifth of them, in `scripts/turns/kept`,
is not learned from and helps to choose thresholds. The passages marked "dev" are trained on as
well, never "fresh" or "held_out". The lower layers of the embedded subject's model stay as they
are, but for a low-rank adapter, a read-out, and that every token sees the whole window. Some texts
are shown without punctuation, and some behind a piece of another one, as steered models write both.
"""

import json
import math
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from esr_eval.data.passages import read_passages
from esr_eval.scorers.turns import (
    HEAD,
    LAYERS,
    TurnReader,
    lower_layers,
    padded,
    places,
    read_out,
    runtime,
    states_behind,
    states_of,
)

SNIPPETS = Path(__file__).parent / "turns"
LEARNED = SNIPPETS / "learned" / "passages.jsonl"
LATER = SNIPPETS / "learned" / "later.jsonl"
KEPT = SNIPPETS / "kept" / "passages.jsonl"
DOUBTFUL = frozenset((SNIPPETS / "doubtful.txt").read_text("utf-8").split())
"""Texts that are left out, as file and line from 0: at the place that their author marked they do
not say, or not clearly, that the answer starts over."""
MLP = ("gate_proj", "up_proj", "down_proj")
RANK = 12
BATCH = 32
RESTART = 3.0
"""What a place with a restart weighs against one without."""
DROPPED, UNREAD = 0.05, 0.1
"""Shares that are left out of what each layer adds, and of what the read-out sees."""
BETWEEN = 0.3
"""Share of words between places that are learned as well."""
NO_TASK, BARE, BEHIND_ANOTHER = 0.15, 0.12, 0.15
"""Shares of texts whose task is left out, as it is not always known; that lose their marks; and
that follow a piece of another text."""
WORDLESS = 0.25
"""Share of texts with a restart that are shown without its words. Nothing says then that the answer
starts over, and by the protocol it does not."""
WHOLE = tuple(".:!?…)]>")
"""How the words of a restart end that are marked whole, and not only the first of them."""
SHORT = 700
"""Characters of a text that still may follow a piece of another one."""
SEVERAL = frozenset({"multi", "failed_restart", "second_restart", "third_restart"})
"""Kinds of snippet that start over more than once, of which one place is marked: the others are
neither restarts nor none."""


class Text(NamedTuple):
    """A text, where its restarts begin and end, and whether these are all of them."""

    task: str
    text: str
    turns: list[tuple[int, int]]
    all_marked: bool = True


def snippets(folder: Path) -> list[Text]:
    """What was written to train on, and answers of the embedded subject without a restart."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text("utf-8").splitlines()):
            if f"{folder.name}/{file.stem}:{number}" in DOUBTFUL:
                continue
            one = json.loads(line)
            if "turn" in one:
                start = len(one["before"])
                text = one["before"] + one["turn"] + one["after"]
                turns = [(start, start + len(one["turn"]))]
                found.append(Text(one["task"], text, turns, one["kind"] not in SEVERAL))
            else:
                found.append(Text(one["task"], one["text"], []))
    return found


def passages(split: str, file: Path | None = None) -> list[Text]:
    """The passages of a split; anything may be fitted to "dev"."""
    found = []
    name = f"{file.parent.name}/{file.stem}" if file else split
    for number, one in enumerate(read_passages(file)):
        if one.split != split or f"{name}:{number}" in DOUBTFUL:
            continue
        later = zip(one.starts()[1:], one.attempts[1:], strict=True)
        turns = [(at, at + len(attempt.first)) for at, attempt in later]
        found.append(Text(one.task, one.text, turns))
    return found


def varied(text: Text, others: list[Text], draw: random.Random) -> Text:
    """A text as it is seen in one epoch."""
    words, turns = text.text, text.turns
    if draw.random() < WORDLESS:
        words, turns = without_words(text, draw)
    if draw.random() < BARE:
        bare = re.sub(r"[.,;:!?()\[\]\"“”#*\-—–…\n]", " ", words).lower()
        words = bare if len(bare) == len(words) else words
    if draw.random() < BEHIND_ANOTHER and len(words) < SHORT:
        other = draw.choice(others).text[: draw.randrange(100, 450)].rsplit(" ", 1)[0]
        before = other + draw.choice([" ", "\n\n", ". "])
        words = before + words
        turns = [(start + len(before), end + len(before)) for start, end in turns]
    return Text("" if draw.random() < NO_TASK else text.task, words, turns, text.all_marked)


def without_words(text: Text, draw: random.Random) -> tuple[str, list[tuple[int, int]]]:
    """A text without the words of one of its restarts, if they are marked whole; and the others."""
    whole = [turn for turn in text.turns if text.text[: turn[1]].rstrip().endswith(WHOLE)]
    if not whole or not text.all_marked:
        return text.text, text.turns
    start, end = turn = draw.choice(whole)
    behind = text.text[end:].lstrip(" ")
    gone = len(text.text) - start - len(behind)
    others = [other for other in text.turns if other != turn]
    left = [(at - gone, to - gone) if at > start else (at, to) for at, to in others]
    return text.text[:start] + behind, left


def example(text: Text, reader: TurnReader, draw: random.Random) -> tuple[list[int], list[float]]:
    """Token ids, and for each whether a restart begins there: 1, 0, or -1 where nobody knows.

    Words inside of a restart and just behind it are neither.
    """
    tokens, (lead, room) = reader.tokens(text.text), reader.frame(text.task)
    at = places(text.text)
    words = [match.start() for match in re.finditer(r"\S+", text.text)]
    wanted = [-1.0] * len(tokens.ids)
    if text.all_marked:
        for place in {*at, *(word for word in words if draw.random() < BETWEEN)}:
            if not any(start - 12 <= place <= end + 50 for start, end in text.turns):
                wanted[tokens.at(place)] = 0.0
    for start, _ in text.turns:
        near = [place for place in at if start - 8 <= place <= start + 45]
        place = min(near, key=lambda place: abs(place - start), default=start)
        marks = re.compile(r"[\s#*>_\-•\"'(“\[]*").match(text.text, place)
        wanted[tokens.at(marks.end() if marks else place)] = 1.0
    low = 0
    if len(wanted) > room:
        turned = [index for index, value in enumerate(wanted) if value == 1.0]
        middle = draw.choice(turned) if turned else draw.randrange(len(wanted))
        low = min(max(middle - draw.randrange(20, room - 20), 0), len(wanted) - room)
    ids = [*lead, *tokens.ids[low : low + room]]
    return ids, [-1.0] * len(lead) + wanted[low : low + room]


class Trained(torch.nn.Module):
    """The reader as it learns: an adapter in each of its layers, and its read-out."""

    def __init__(self, start: Path | None, fixed: int) -> None:
        """Begin with the adapter in a file, if one is named, whose lowest layers stay fixed.

        The read-out beside it is taken over where it reads the same layer.
        """
        super().__init__()
        self.net = get_peft_model(
            lower_layers(runtime()),
            LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", *MLP],
                layers_to_transform=list(range(LAYERS)),
                layers_pattern="layers",
                task_type="CAUSAL_LM",
            ),
        )
        self.layers = self.net.base_model.model.model
        self.head = read_out(self.layers)
        if start is not None:
            learned = load_file(start)
            self._take_over(learned)
            if any(f".layers.{LAYERS - 1}." in name for name in learned):
                self.head.load_state_dict(load_file(start.with_name(HEAD)))
        for layer in self.layers.layers[:fixed]:
            layer.requires_grad_(False)
        for layer in self.layers.layers[fixed:]:
            for adds in (layer.self_attn.o_proj, layer.mlp.down_proj):
                adds.register_forward_hook(self._drop)
        self.unread = torch.nn.Dropout(UNREAD)

    def _take_over(self, learned: dict[str, torch.Tensor]) -> None:
        """Take the adapter of a reader of fewer layers, or of a higher rank; its scale is ours."""
        own = {name.replace(".default", ""): one for name, one in self.net.named_parameters()}
        for down in (name for name in learned if "lora_A" in name):
            up = down.replace("lora_A", "lora_B")
            outer, sizes, inner = torch.linalg.svd(
                learned[up].float() @ learned[down].float(), full_matrices=False
            )
            roots = sizes[:RANK].sqrt()
            with torch.no_grad():
                own[down].copy_(roots[:, None] * inner[:RANK])
                own[up].copy_(outer[:, :RANK] * roots)

    def _drop(self, module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(out, DROPPED, self.training)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits, [rows, tokens]; in 16 bits where the machine has such, which halves the time."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=halves(ids.device)):
            states = states_of(self.layers, ids, lengths)
            found: torch.Tensor = self.head(self.unread(states_behind(states, lengths)))
        return found[..., 0].float()


def halves(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; some processors only imitate it, at a great cost."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
@click.option("--epochs", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--rate", default=8e-4, show_default=True, help="The highest learning rate.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Begin with this adapter (adapter_model.safetensors), of as many layers or fewer.",
)
@click.option(
    "--fixed", default=0, show_default=True, help="So many of its layers stay as they are."
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="So much of all texts but the latest (learned/later.jsonl) is seen in each pass.",
)
@click.option("--most", type=int, help="Learn and report from so many texts, to try this script.")
def main(
    folder: Path,
    epochs: int,
    seed: int,
    rate: float,
    start: Path | None,
    fixed: int,
    share: float,
    most: int | None,
) -> None:
    """Train, and write adapter and read-out into the folder."""
    draw = random.Random(seed)  # noqa: S311 - a draw of examples, no secret
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    older = [*passages("dev"), *snippets(SNIPPETS), *passages("own", LEARNED)]
    later = passages("own", LATER)
    if most:
        older, later = (draw.sample(one, min(most, len(one))) for one in (older, later))
    seen = round(share * len(older))
    texts = [*older, *later]
    without = [text for text in texts if not text.turns]
    click.echo(f"{len(texts):,} texts, {len(without):,} of them without a restart, on {device}")
    tokens, reader = TurnReader(None), Trained(start, fixed).to(device)
    weights = [one for one in reader.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.01)
    steps = epochs * -(-(seen + len(later)) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps + 1, pct_start=0.1
    )
    loss_of = torch.nn.BCEWithLogitsLoss(
        reduction="sum", pos_weight=torch.tensor(RESTART, device=device)
    )
    for epoch in range(epochs):
        reader.train()
        now = [*draw.sample(older, seen), *later]
        rows = [example(varied(text, without, draw), tokens, draw) for text in now]
        total = 0.0
        for batch in batches(rows, draw):
            wanted = torch.full((len(batch), max(len(row) for row, _ in batch)), -1.0)
            for index, (_, values) in enumerate(batch):
                wanted[index, : len(values)] = torch.tensor(values)
            lengths = torch.tensor([len(row) for row, _ in batch], device=device)
            found = reader(padded([row for row, _ in batch]).to(device), lengths)
            wanted = wanted.to(device)
            known = wanted >= 0
            loss = loss_of(found[known], wanted[known]) / (2 * BATCH)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        click.echo(f"epoch {epoch + 1} of {epochs}: loss {total * BATCH / len(now):.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    # The base's folder is this machine's: no reader has it.
    reader.net.peft_config["default"].base_model_name_or_path = runtime().model
    reader.net.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    adapter = folder / "adapter_model.safetensors"
    save_file({name: value.half() for name, value in load_file(adapter).items()}, adapter)
    save_file(
        {name: value.cpu().clone() for name, value in reader.head.state_dict().items()},
        folder / HEAD,
    )
    report(folder, most)


def report(folder: Path, most: int | None) -> None:
    """Print what the reader alone finds at several thresholds, of texts that it was not trained on.

    These choose `esr_eval.scorers.phrases.SURE`; nothing "held_out" is looked at.
    """
    reader = TurnReader(folder)
    for name, texts in (("fresh", passages("fresh")), ("kept", passages("own", KEPT))):
        turns: list[float] = []
        others: list[float] = []
        for text in texts[:most]:
            at = places(text.text)
            scores = dict(zip(at, reader.scores(text.text, at, text.task), strict=True))
            for start, _ in text.turns:
                near = [score for place, score in scores.items() if -25 <= place - start <= 45]
                turns.append(max(near, default=-math.inf))
            if not text.turns:
                others.append(max(scores.values(), default=-math.inf))
        click.echo(f"{name}: {len(turns)} restarts, {len(others)} texts without one")
        for threshold in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
            found = sum(score >= threshold for score in turns)
            alarms = sum(score >= threshold for score in others)
            click.echo(f"  at {threshold:4.1f}: {found} found, {alarms} false alarms")


if __name__ == "__main__":
    main()
