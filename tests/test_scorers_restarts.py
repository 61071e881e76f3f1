import time

import pytest
from scoring import DATA, examples

from esr_eval.scorers.degradation import is_degraded
from esr_eval.scorers.phrases import _main, find_restarts, measure


@pytest.mark.parametrize(
    ("split", "precision", "recall"),
    [("dev", 0.97, 0.97), ("held_out", 0.95, 0.9), ("fresh", 0.9, 0.6)],
)
def test_precision_and_recall(split, precision, recall):
    found = measure(examples("restarts.jsonl", split))
    assert found.precision >= precision and found.recall >= recall


def test_the_labelled_set_is_varied():
    rows = examples("restarts.jsonl")
    kinds = {row["kind"] for row in rows}
    assert len(rows) >= 80
    assert kinds >= {"explicit", "implicit", "none", "quoted", "list_wait", "german", "spanish"}


def test_the_command_prints_every_set(capsys):
    _main(str(DATA / "restarts.jsonl"))
    printed = capsys.readouterr().out
    assert all(f"{split}: " in printed for split in ("dev", "held_out", "fresh"))


@pytest.mark.parametrize(
    "text",
    [
        "Wait for the paint to dry, then add a second coat. Wait again.",
        "Please wait while we process the fractions.",
        "The closet, and that's not right, and it's big enough for the sea.",
        "Many people add the denominators. This is incorrect. Find a common one first.",
        'The nurse said: "Wait, that\'s not right. Let me start over." Then she left the room.',
        "I'll try again. Find a common denominator and add.",
        "Find a common denominator and add. Wait, that's not right. Let me start over.",
        "Mix the dough well. If it's wrong, start over. Let's try another example with rye.",
    ],
)
def test_what_only_looks_like_a_restart(text):
    assert find_restarts(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "The lake is deep and cold. *Wait*, that’s not right. Add the numerators.",
        "The lake is deep and cold.\n\n- Wait, that's not right.\n- Add the numerators.",
        "The lake is the lake of the, wait, that's not right, let me start over. Add them.",
        "THE LAKE IS DEEP AND COLD. WAIT, THAT'S NOT RIGHT! ADD THE NUMERATORS.",
    ],
)
def test_restarts_in_disguise(text):
    [found] = find_restarts(text)
    assert "wait" in text[found.start : found.end].lower()


@pytest.mark.parametrize(
    "text",
    [
        "no. " * 250_000,
        "wait, " * 160_000,
        'Anna: hi\nBen: "' * 60_000,
        "Subject: a\n" * 90_000,
        "' " * 400_000,
    ],
    ids=["no", "wait", "dialogue", "letters", "quotes"],
)
def test_a_megabyte_of_bait_takes_seconds_at_most(text):
    started = time.perf_counter()
    find_restarts(text)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("text", "degraded"),
    [
        ("fire fire fire fire fire", True),
        ("Fire, FIRE! fire fire... fire", True),
        ("**fire** fire\nfire - fire; fire", True),
        ("Feuer Feuer Feuer Feuer Feuer", True),
        ("fire fire fire fire", False),
        ("a a a a a a a", False),
        ("fire fire fire water fire fire", False),
        ("", False),
    ],
)
def test_degradation(text, degraded):
    assert is_degraded(text) is degraded
