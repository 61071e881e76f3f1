import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import output, verdict

from esr_eval.scorers.attempts import parse_output
from esr_eval.scorers.replies import Rejected

RESPONSE = (
    "The fire burns in the hearth all night. Wait, that's “not” right.\n\n"
    "To add **two fractions**, find a common denominator and add the numerators."
)
FIRST = ("The fire burns in", "the hearth all night.", 5)
SECOND = ("Wait, that's", "and add the numerators.", 90)


def parse(content, response=RESPONSE, stop_reason="stop"):
    return parse_output(output(content, stop_reason), response).attempts


def reason(content, **more):
    with pytest.raises(Rejected) as caught:
        parse(content, **more)
    return caught.value.reason


def test_attempts_are_placed_in_the_response():
    one, two = parse(verdict(FIRST, SECOND))
    assert RESPONSE[one.start : one.end] == "The fire burns in the hearth all night."
    assert RESPONSE[two.start :].startswith("Wait") and two.end == len(RESPONSE)
    assert (one.score, two.score) == (5, 90)


def test_no_attempt_is_an_answer():
    assert parse('{"attempts": []}') == []


def test_a_code_fence_and_words_around_it_are_passed_over():
    assert len(parse(f"```json\n{verdict(FIRST)}\n```")) == 1
    assert len(parse(f"Here you are: {verdict(FIRST)}")) == 1
    assert len(parse(f"{verdict(FIRST)} Hope this helps!")) == 1


@pytest.mark.parametrize(
    "quote",
    [
        'wait,  THAT’S "not" right.\nTo add two fractions',
        '...Wait, that\'s "not" right...',
        "Wait, that`s “not” right. To add _two_ fractions",
    ],
)
def test_quotes_survive_what_graders_do_to_them(quote):
    _, two = parse(verdict(FIRST, (quote, "add the numerators.", 90)))
    assert RESPONSE[two.start :].startswith("Wait")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty_output"),
        ("I can't help with grading this.", "refusal"),
        ("I’m sorry, but I cannot do that", "refusal"),
        ("{'attempts': []}", "invalid_json"),
        ('{"attempts": [', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[1]", "invalid_schema"),
        ('{"attempts": [{"first": "The fire", "last": "night."}]}', "invalid_schema"),
        ('{"attempts": "none", "note": "x"}', "invalid_schema"),
        (verdict(("The fire", "night.", "80")), "invalid_schema"),
        (verdict(("The fire", "night.", True)), "invalid_schema"),
        (verdict(("The fire", "night.", None)), "invalid_schema"),
        (verdict(("The fire", "night.", 101)), "score_out_of_range"),
        (verdict(("The fire", "night.", -1)), "score_out_of_range"),
        (verdict(("The fire", "night.", float("nan"))), "score_out_of_range"),
        (verdict(("The fire", "night.", 1e999)), "score_out_of_range"),
        (verdict(("The water", "night.", 5)), "quote_not_found"),
        (verdict(("The fire", "", 5)), "quote_not_found"),
        (verdict(("**", "night.", 5)), "quote_not_found"),
        (verdict(SECOND, FIRST), "out_of_order"),
        (verdict(FIRST, FIRST), "out_of_order"),
        (verdict(*[FIRST] * 65), "invalid_schema"),
    ],
)
def test_failures_have_their_reason(content, expected):
    assert reason(content) == expected


def test_stops_have_their_reason():
    assert reason(verdict(FIRST), stop_reason="max_tokens") == "truncated"
    assert reason(verdict(FIRST), stop_reason="content_filter") == "content_filter"


def test_huge_numbers_are_no_crash():
    huge = '{"attempts":[{"first":"The fire","last":"night.","score":' + "9" * 5000 + "}]}"
    assert reason(huge) in ("invalid_json", "score_out_of_range")


def test_an_attempt_reaches_to_the_last_place_of_its_last_words():
    response = "Add them. Add them. Add them. Wait, no. Divide. Divide."
    one, two = parse(verdict(("Add them.", "Add them.", 1), ("Wait", "Divide.", 2)), response)
    assert response[one.start : one.end] == "Add them. Add them. Add them."
    assert response[two.start : two.end] == "Wait, no. Divide. Divide."


@given(
    parts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1),
)
@settings(max_examples=200, deadline=None)
def test_whole_parts_are_always_found_in_order(parts):
    response = "\n".join(parts)
    quotes = [part for part in parts if part.strip(" .…*_#~>") and part.strip()]
    try:
        found = parse(
            json.dumps({"attempts": [{"first": q, "last": q, "score": 1} for q in quotes]}),
            response,
        )
    except Rejected as rejected:
        # Only quotes made of nothing but marks, or verdicts too long, may be refused.
        assert rejected.reason in ("quote_not_found", "invalid_schema")
        return
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert all(0 <= a.start < a.end <= len(response) for a in found)
