"""Quotes as judges write them: what is found, exactly where, and what must not be found."""

import itertools
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import grader, output, run, trial, verdict

from esr_eval.scorers.attempts import parse_output
from esr_eval.scorers.quotes import Finder
from esr_eval.scorers.replies import Rejected

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
TASK = "Explain how to add two fractions."
RESPONSE = (
    "Sure! **Adding fractions** is “easy”:\n\n"
    "1. Mix `numerator` cups\n2. Stir 3.5 times; don't stop\n- Serve\n* Done (really) — at last.\n\n"
    "Wait, that's wrong. In the end, find a common denominator. Then add the numerators"
)


def found(quote, response=RESPONSE):
    finder = Finder(response)
    span = finder.first(quote)
    return None if span is None else (response[span.start : span.end], finder.lenient)


WORDS = ["Ünïcode café naïve", "각 나라 한국어", "Å ngström ﬁre", "がぎぐげご プ", "Việt Nam ạ̊ rồi", "ΐ ᾷ ΆΈ",
         "हिन्दी ज़ क़", "ẞharp İstanbul", "e\u0301\u0323 o\u0323\u0302", "x² ½ ™ Ⅳ"]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize(("theirs", "ours"), itertools.product(FORMS, FORMS))
def test_normal_forms_make_no_difference(words, theirs, ours):
    before, after = "Fire in the é hearth. ", ". À la fin."
    whole = unicodedata.normalize(ours, before + words + after)
    span = Finder(whole).first(unicodedata.normalize(theirs, words))
    start = len(unicodedata.normalize(ours, before))
    assert span == (start, start + len(unicodedata.normalize(ours, words)))


LETTERS = st.text(
    st.characters(categories=["Ll", "Lu", "Lo", "Mn", "Nd"], max_codepoint=0xFFFF), min_size=3
)


@given(words=LETTERS, theirs=st.sampled_from(FORMS), ours=st.sampled_from(FORMS))
@settings(max_examples=200, deadline=None)
def test_any_word_is_found_in_any_form(words, theirs, ours):
    response = unicodedata.normalize(ours, f"Before. {words}. After.")
    span = Finder(response).first(unicodedata.normalize(theirs, words))
    if not any(map(str.isalnum, words)) or unicodedata.combining(words[0]):
        return  # Marks alone are no words.
    assert span is not None
    same = unicodedata.normalize("NFKD", response[span.start : span.end])
    assert _folded(same) == _folded(words)


def _folded(text):
    folded = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFKD", folded)


@pytest.mark.parametrize(
    ("quote", "place"),
    [
        ("Adding fractions is easy.", "Adding fractions** is “easy"),
        ("Then add the numerators.", "Then add the numerators"),
        ('"Wait, that\'s wrong."', "Wait, that's wrong"),
        ("“Wait, that’s wrong”", "Wait, that's wrong"),
        ("« Wait, that's wrong »", "Wait, that's wrong"),
        ("„Wait, that's wrong“.", "Wait, that's wrong"),
        ('""Wait, that\'s wrong""', "Wait, that's wrong"),
        ("''Wait, that's wrong''", "Wait, that's wrong"),
        ("`Wait, that's wrong`", "Wait, that's wrong"),
        ("- Wait, that's wrong", "Wait, that's wrong"),
        ("2. Wait, that's wrong", "Wait, that's wrong"),
        ("> **Wait**, that\\'s wrong", "Wait, that's wrong"),
        ("wait that's wrong in the end", "Wait, that's wrong. In the end"),
        ("Mix numerator cups", "Mix `numerator` cups"),
        ("Mix numerator cups Stir 3.5 times", "Mix `numerator` cups\n2. Stir 3.5 times"),
        ("easy: Mix numerator cups", "easy”:\n\n1. Mix `numerator` cups"),
        ("Serve Done (really) -- at last", "Serve\n* Done (really) — at last"),
        ("• Serve • Done", "Serve\n* Done"),
        ("Sure! ... easy", "Sure! **Adding fractions** is “easy"),
        ("Wait, that's … the end", "Wait, that's wrong. In the end"),
        ("Wait [...] In … common denominator", None),
        ("Wait [...] the end (…) denominator", "Wait, that's wrong. In the end, find a common denominator"),
        ("[...] find a common denominator [...]", "find a common denominator"),
        ("Adding\\nfractions", "Adding fractions"),
    ],
)  # fmt: skip
def test_habits_of_quoting(quote, place):
    if place is None:
        assert found(quote) is None, "a piece of two letters is everywhere"
        return
    assert found(quote)[0].strip("*“”") == place.strip("*“”")


@pytest.mark.parametrize(
    "quote",
    [
        "",
        " \n",
        "…",
        "...",
        ".",
        "!",
        "?!",
        "—",
        "“”",
        "**",
        "e",
        "I",
        "Z",
        "how to add two fractions",
        "Explain how to add",
        "find the common denominator",
        "add the denominators",
        "the numerators … Sure!",
        "common denominator ... Wait, that's wrong",
        "Sure! ... to add two fractions",
        "Explain ... fractions",
        "Sure! ... e",
        "S ... easy",
        "... . ...",
        "Stir 35 times",
        "Stir 3 5 cups",
        "Mix; umerator",
        "ait, thats wron",
        "Wait: that is wrong",
        "fraction, is easy",
    ],
)
def test_what_is_not_there_has_no_place(quote):
    assert found(quote) is None
    with pytest.raises(Rejected) as caught:
        parse_output(output(verdict((quote, "numerators", 50))), RESPONSE)
    assert caught.value.reason == "quote_not_found"


def test_a_response_without_words_is_quoted_by_its_marks():
    assert found("!", "! ! !") == ("!", 0) and found("...", ".....") == ("...", 0)
    assert found("🔥", "It burns 🔥🔥.") == ("🔥", 0)


def test_letters_of_other_accents_are_others():
    for response in ("The cafés are open.", unicodedata.normalize("NFD", "The cafés are open.")):
        assert found("The cafes", response) is None and found("The cafe", response) is None
    assert found("가다", "각다") is None
    assert found("가", unicodedata.normalize("NFD", "각")) is None


def test_an_ellipsis_stands_for_no_more_than_a_passage():
    response = f"The fire burns. {'So it goes on. ' * 60}Add the numerators."
    assert found("The fire burns ... Add the numerators", response) is None
    assert found("goes on ... Add the numerators", response)[0].startswith("goes on")


def test_the_exact_place_comes_before_a_lenient_one():
    response = "Wait, stop, here. Fire. Wait stop here."
    assert found("Wait stop here", response) == ("Wait stop here", 0)
    assert Finder(response).first("Wait stop here").start == response.rindex("Wait")
    assert found("wait stop! here", response) == ("Wait, stop, here", 1)


def test_a_quote_out_of_order_is_not_placed_leniently_elsewhere():
    response = "Wait, no. The fire burns. Add them. The fire, burns."
    attempts = ("Add them.", "Add them.", 5), ("The fire burns", "burns.", 9)
    with pytest.raises(Rejected) as caught:
        parse_output(output(verdict(*attempts)), response)
    assert caught.value.reason == "out_of_order"


def test_lenient_quotes_are_counted_in_the_log(tmp_path):
    judge = grader([verdict(("Sure! Adding", "'easy'.", 5), ("Wait, that's", "numerators.", 90))])
    [sample] = run([trial(RESPONSE)], judge, tmp_path).samples
    score = sample.scores["attempts"]
    assert score.answer == "2 attempts: 5 → 90" and score.metadata["lenient"] == 2
    one, two = score.metadata["attempts"]
    assert RESPONSE[one["start"] : one["end"]].endswith("“easy")
    assert RESPONSE[two["start"] : two["end"]].endswith("numerators")


@pytest.mark.parametrize(
    "quote",
    [
        "the " * 250_000,
        "." * 1_000_000,
        " " * 500_000 + "x" + " " * 500_000,
        "…a" * 300_000,
        "fire ... water",
        "a, a",
        "fire ... burns ... fire ... burns ... ice",
    ],
)
def test_hostile_quotes_take_bounded_time(quote):
    began = time.process_time()
    for response in ("The fire burns. " * 60_000, "a" * 1_000_000):
        assert Finder(response).first(quote) is None
    assert time.process_time() - began < 30
