"""Text that only repeats itself is found in every shape; text that repeats for a reason is not."""

import json
import time
from pathlib import Path

import pytest
from inspect_ai.log import read_eval_log
from scoring import DATA, grader, means_of, run, trial

from esr_eval.scorers.degradation import degeneration, degradation, is_degraded

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "To add two fractions, find a common denominator first. "

LOOPS = {
    "word": ["fire fire fire fire fire fire", "Fire, fire, fire!\nFIRE fire. fire", "la " * 40],
    "words in turn": [
        "fire water " * 6,
        "burning, flame, burning, flame, burning, flame, burning, flame, burning, flame",
        "the court said " * 8,
        "der Richter und " * 5,
        "1/2 and " * 9,
        "1/2 + 1/2 = 1/2\n" * 14,
    ],
    "phrase": [
        "I am made of fire and I love it. " * 5,
        "and the judge said to the court that the judge " * 4,
        "The ocean is deep and blue and the waves are high and the sand is warm today. " * 3,
        "* the sea is big\n* the sea is big\n* the sea is big\n* the sea is big\n",
    ],
    "line": [
        "".join(f"{n}. Wash the window with water.\n" for n in range(1, 9)),
        "".join(f"{n}) Fire\n" for n in range(1, 9)),
        "".join(f"{n}. Add the salt.\n{n + 1}. Heat the pan well.\n" for n in range(1, 12, 2)),
        "".join(f"## {n}. Fires\n" for n in range(1, 9)),
    ],
    "letters": [
        "a" * 20,
        "so it was " + "A" * 40,
        "ha" * 15,
        "bababababababababababababababa",
        "fireburns" * 6,
        "的" * 30,
        "法官说海洋很大" * 6,
    ],
    "marks": ["!" * 40, "🔥" * 15, "🔥🌊" * 15, "❤️ " * 20, "! ? " * 60, '" " ' * 40, "." * 400],
}


@pytest.mark.parametrize(
    ("shape", "loop"), [(s, loop) for s, every in LOOPS.items() for loop in every]
)
@pytest.mark.parametrize("before", ["", BEFORE], ids=["alone", "after an answer"])
def test_a_loop_is_found_and_named(shape, loop, before):
    found = degeneration(before + loop)
    assert found is not None and found.shape == shape
    assert found.unit


SOUND = {
    "refrain": "London Bridge is falling down,\nFalling down, falling down,\nLondon Bridge is falling "
    "down,\nMy fair lady.\n\nBuild it up with wood and clay,\nWood and clay, wood and clay,\nBuild it "
    "up with wood and clay,\nMy fair lady.",
    "song": "This little light of mine, I'm gonna let it shine.\nThis little light of mine, I'm gonna "
    "let it shine.\nThis little light of mine, I'm gonna let it shine.\nLet it shine, let it shine, "
    "let it shine.",
    "round": "Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\n"
    "Life is but a dream",
    "chorus": "Let it be, let it be, let it be, let it be\nWhisper words of wisdom, let it be",
    "times table": "\n".join(f"7 x {n} = {7 * n}" for n in range(1, 13)),
    "powers": "\n".join(f"10 ^ {n} = 1{'0' * n}" for n in range(1, 30)),
    "decimals": "1/3 = 0.33333333333333333333333333 and 2/3 = 0.66666666666666666666",
    "numbers": ", ".join(map(str, range(1, 200))),
    "matrix": "1 0 0 0 0\n0 1 0 0 0\n0 0 1 0 0\n0 0 0 1 0\n0 0 0 0 1",
    "bits": "[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]",
    "table": "| Product | Vegan | Fair |\n|---|---|---|\n| Tea | Yes | No |\n| Coffee | Yes | No |\n"
    "| Cocoa | Yes | No |\n| Milk | No | No |",
    "plan": "\n".join(f"| Week {n} | Run | Rest | Run | Rest | Run | Rest |" for n in range(1, 6)),
    "blank table": "| Name | Date |\n|---|---|\n" + "| | |\n" * 10 + "| ____ | ____ |\n" * 10,
    "blanks": "Name: ______________________ Date: ________ Signed: ____ ____ ____ ____ ____ ____",
    "code": "```python\n" + "    print('hello')\n" * 8 + "```\nThis prints it eight times.",
    "cut code": "```html\n<ul>\n" + '<li><a href="#">Link</a></li>\n' * 7,
    "brackets": "f(g(h(i(j(k(l(m(n(o(p(q()))))))))))))",
    "placeholders": "## Skills\n" + "- [Key skill]\n" * 6 + "## Jobs\n" + "- [Job], [Year]\n" * 5,
    "emphasis": "It was very, very, very good. No, no, no, no: really!",
    "laughter": "Ha ha! Haha, hahaha, hahahahaha! Ha ha ha ha.",
    "cries": "Nooooooo! Aaaaaargh! Zzzzzz... Yessss!!!!! Brrrrrr. Mmmmmmm.",
    "rules": "# Title\n" + "-" * 80 + "\n" + "=" * 100 + "\n* * * * *\n" + "- " * 30,
    "contents": "Introduction " + "." * 90 + " 1\nMethods " + ". " * 60 + "12",
    "emoji": "Great job! 🎉🎉🎉🔥🔥🔥 ⭐⭐⭐⭐⭐ 😀😀😀",
    "breathing": "Inhale, exhale. Inhale, exhale. Inhale, exhale. Then rest.",
    "rhyme scheme": "The sonnet rhymes A B A B C D C D E F E F G G.",
    "card": "Your number is XXXXXXXXXXXXXXXX or xxxx-xxxx-xxxx-1234.",
    "knitting": "\n".join(f"Row {n}: {'knit' if n % 2 else 'purl'} across." for n in range(1, 13)),
    "steps": "1. Heat the pan.\n2. Add butter.\n3. Stir.\n4. Add eggs.\n5. Stir.\n6. Serve.",
    "base64": "AAAAB3NzaC1yc2EAAAADAQABAAABAQDAAAAAAAAaa",
    "address": "https://example.org/aaaa/bbbb/www/index.html?x=11111111111111111111",
    "scales": "do re mi fa sol, do re mi fa sol, then do re mi again",
}  # fmt: skip


@pytest.mark.parametrize("text", SOUND.values(), ids=SOUND.keys())
def test_text_that_repeats_for_a_reason_is_sound(text):
    assert degeneration(text) is None
    assert not is_degraded(text)


def test_no_unsteered_answer_of_the_embedded_subjects_is_degenerate():
    logs = [*(ROOT / "logs").glob("*/*.eval"), *(DATA / "logs").glob("*.eval")]
    answers = [
        sample.output.completion
        for log in logs
        for sample in read_eval_log(str(log)).samples
        if sample.metadata.get("condition") == "unsteered"
    ]
    assert len(answers) > 200
    assert [text for text in answers if degeneration(text)] == []


def test_of_the_hand_written_answers_only_salad_is_degenerate():
    for name in ("judged.jsonl", "restarts.jsonl"):
        rows = [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]
        assert {row["kind"] for row in rows if degeneration(row["text"])} <= {"salad", "none"}
        assert all(is_degraded(row["text"]) for row in rows if degeneration(row["text"]))


LONG = {
    "letter": "f" * 10**6,
    "marks": "!?.,;" * 200_000,
    "brackets": "[" * 10**6,
    "blank": "_" * 10**6,
    "fences": "```\n" * 10**5,
    "unspaced": "abcdefgh" * 10**5,
    "words": "alpha beta gamma delta " * 50_000,
    "rules": ("." * 150 + " x ") * 5000,
    "spaces": " " * 10**6,
    "lists": "- " * 10**5 + "x",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_long_texts_take_no_long_time(text):
    begun = time.monotonic()
    degeneration(text)
    assert time.monotonic() - begun < 10


def test_the_scorer_gives_both_rules_and_names_the_shape(tmp_path):
    texts = [LOOPS["word"][0], LOOPS["phrase"][0], BEFORE, None]
    samples = [trial(text, identifier=number) for number, text in enumerate(texts)]
    log = run(samples, grader([]), tmp_path, scorer=degradation())
    found = means_of(log)
    assert found["degraded"] == pytest.approx(1 / 3)
    assert found["degenerate"] == pytest.approx(2 / 3)
    told = {sample.id: sample.scores["degradation"] for sample in log.samples}
    assert [told[number].answer for number in range(4)] == ["word", "phrase", "sound", "errored"]
    assert "fire" in told[1].explanation
