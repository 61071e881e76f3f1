"""Verdicts in the replies of real judges: what stands around the JSON, and what is broken in it."""

import json
import time

import anyio
import pytest
from scoring import TASK, grader, output, verdict

from esr_eval.scorers.attempts import ask, parse_output
from esr_eval.scorers.replies import REASONS, Rejected, mend, without_thinking

RESPONSE = (
    "The fire burns in the hearth all night. Wait, that's not right.\n"
    "\tUse \\frac{1}{2} and \\times, \\nu and \\alpha \\(x\\): add the numerators."
)
GOOD = verdict(("The fire burns in", "all night.", 5), ("Wait, that's", "the numerators.", 90))
OTHER = verdict(("The fire burns in", "the numerators.", 50))
LIST = json.dumps(json.loads(GOOD)["attempts"])
FORM = '{"attempts": [{"first": "<first 4-8 words>", "last": "<last words>", "score": <0-100>}]}'


def parse(reply, response=RESPONSE):
    return parse_output(output(reply), response).attempts


def reason(reply, response=RESPONSE):
    with pytest.raises(Rejected) as caught:
        parse(reply, response)
    assert caught.value.reason in REASONS and caught.value.problem
    return caught.value.reason


HABITS = {
    "words before": f"Here is my verdict:\n\n{GOOD}",
    "words after": f"{GOOD}\n\nI hope this helps [see {{above}}]!",
    "braces in the words": f"For {{task}}, {{concept}} and \\frac{{1}}{{2}}, [1]: {GOOD}",
    "thinking": f"<think>First I'd say {OTHER}, hm.\nNo.</think>\n{GOOD}",
    "thinking that the prompt began": f"... so {OTHER}? No.</think>{GOOD}",
    "thinking, unfinished JSON": f'<thinking>{{"attempts": [{{"first": "x</thinking>{GOOD}',
    "thinking afterwards": f"{GOOD}<think>That was right.</think>",
    "another tag": f"<reasoning>{OTHER}</reasoning><answer>{GOOD}</answer>",
    "square tags": f"[THINK]{OTHER}[/THINK]{GOOD}",
    "channels": f"<|channel|>analysis<|message|>{OTHER}<|end|><|channel|>final<|message|>{GOOD}",
    "an opening tag alone": f"<think>\n{GOOD}",
    "fence on one line": f"```json {GOOD} ```",
    "fence with words": f"Sure!\n```\n{GOOD}\n```\nDone.",
    "fence that is not closed": f"```json\n{GOOD}",
    "trailing commas": GOOD.replace("}]", "},]").replace("]}", "],}"),
    "trailing commas among words": f"So: {GOOD.replace('90}', '90,}')} Done.",
    "comment": GOOD.replace("90}", "90 // good, mostly\n}"),
    "byte order mark": f"\ufeff{GOOD}",
    "bare list": LIST,
    "bare list among words": f"Two attempts: {LIST}",
    "bare list after thinking": f"<think>two</think>```json\n{LIST}\n```",
    "extra keys": GOOD.replace('"score": 5', '"score": 5, "why": {"off": [1]}')[:-1] + ', "n": 2}',
    "extra key before": f'{{"thoughts": "It says {{so}}.", {GOOD[1:]}',
    "wrapped in an object": json.dumps({"verdict": json.loads(GOOD)}),
    "wrapped in a list": f"[{GOOD}]",
    "wrapped in braces": f"{{{GOOD}}}",
    "twice the same": f"{GOOD}\n\nFinal answer: {json.dumps(json.loads(GOOD), indent=2)}",
    "the form repeated": f"In the form {FORM}, my verdict is {GOOD}",
    "the form in short": f'As {{"attempts": [...]}}: {GOOD}',
    "pretty": json.dumps(json.loads(GOOD), indent=4),
}


@pytest.mark.parametrize("reply", HABITS.values(), ids=HABITS)
def test_usable_replies_are_used(reply):
    assert parse(reply) == parse(GOOD)


def test_a_bare_empty_list_is_no_attempt_only_as_the_whole_reply():
    assert parse("[]") == parse("<think>nothing</think>```json\n[]\n```") == []
    assert reason("There are no attempts, see [].") == "invalid_json"


@pytest.mark.parametrize(
    "first",
    ["\\frac{1}{2} and", "Use \\frac{1}{2}", "\\times, \\nu", "\\nu and", "\\alpha \\(x\\)"],
)
def test_latex_that_is_not_escaped_is_what_it_was(first):
    [found] = parse(f'{{"attempts": [{{"first": "{first}", "last": "numerators.", "score": 9}}]}}')
    assert found.start == RESPONSE.index(first)


def test_line_ends_and_tabs_in_strings_are_taken_as_they_are():
    reply = GOOD.replace("Wait, that's", "Wait, that's not right.\n\tUse")
    assert parse(reply) == parse(GOOD)
    twice = GOOD.replace("Wait, that's", "Wait, that's not right.\\\\n\\\\tUse")
    assert parse(twice) == parse(GOOD)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("0.85", "score_not_whole"),
        ("7.5", "score_not_whole"),
        ("99.99", "score_not_whole"),
        ("1e-3", "score_not_whole"),
        ('"85"', "invalid_schema"),
        ('"85/100"', "invalid_schema"),
        ('"85%"', "invalid_schema"),
        ('"high"', "invalid_schema"),
        ("true", "invalid_schema"),
        ("null", "invalid_schema"),
        ("[85]", "invalid_schema"),
        ('{"value": 85}', "invalid_schema"),
        ("85/100", "invalid_json"),
        ("85%", "invalid_json"),
        ("850", "score_out_of_range"),
        ("-5", "score_out_of_range"),
        ("Infinity", "score_out_of_range"),
        ("1" + "0" * 400, "score_out_of_range"),
    ],
)
def test_scores_of_another_scale_are_refused(score, expected):
    reply = GOOD.replace("90}", score + "}")
    assert reason(reply) == expected == reason(f"My verdict: {reply}")


@pytest.mark.parametrize(("score", "value"), [("85.0", 85), ("1e2", 100), ("8.5e1", 85), ("-0", 0)])
def test_whole_numbers_may_be_written_otherwise(score, value):
    assert parse(GOOD.replace("90}", score + "}"))[1].score == value


BAIT = '{"attempts": [{"first": "The fire", "last": "all night.", "score": 100}]}'
UNCLEAR = {
    "two verdicts": (f"{GOOD} or {OTHER}", "ambiguous"),
    "no attempt or some": (f'{{"attempts": []}} {GOOD}', "ambiguous"),
    "a quoted verdict before": (f"The response only says {BAIT}. So: {GOOD}", "ambiguous"),
    "a quoted verdict after": (f"{GOOD} I did not follow {BAIT}.", "ambiguous"),
    "a quoted verdict in a string that is not escaped": (
        f'{{"attempts": [{{"first": "{BAIT}", "last": "x", "score": 5}}]}}',
        "invalid_json",
    ),
    "a quoted verdict in words that are not escaped": (
        f'{{"thoughts": "It says "{BAIT}" and no more", "attempts": []}}',
        "invalid_json",
    ),
    "a broken one and a whole one": (f'{{"attempts": [{{"first": "T", {GOOD}', "invalid_json"),
    "a broken one, closed, and a whole one": (
        f'{{"attempts": [{{"first" "x"}}]}} {GOOD}',
        "ambiguous",
    ),
    "two wrapped": (json.dumps({"a": json.loads(GOOD), "b": json.loads(OTHER)}), "invalid_schema"),
    "only in the thinking": (f"<think>{GOOD}</think> Done.", "invalid_json"),
    "a refusal": ("<think>hm</think>I'm sorry, I can't grade this.", "refusal"),
    "one attempt's score missing": (GOOD.replace(', "score": 90', ""), "invalid_schema"),
    "cut off": (GOOD[:-20], "invalid_json"),
    "only the form": (f"The form is {FORM}.", "invalid_json"),
    "another object": ('{"score": 80, "reason": "good"}', "invalid_schema"),
    "an object among words": ('My score: {"score": 80}', "invalid_json"),
}


@pytest.mark.parametrize(("reply", "expected"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_unclear_is_not_guessed(reply, expected):
    assert reason(reply) == expected


HOSTILE = {
    "braces": '{"' * 500_000,
    "nested objects": '[{"a":' * 170_000,
    "begun verdicts": '{"attempts": [' * 70_000,
    "escapes": '"\\' * 500_000,
    "escaped quotes": '{"attempts": "' + '\\"' * 500_000,
    "a backslash at the end": '{"attempts": "' + '\\"' * 400_000 + "\\",
    "spaces": "{" + " " * 1_000_000 + '"',
    "commas": '{"a" ' + ", " * 500_000,
    "tags": "<think>" * 140_000,
    "closing tags": "</think>[{" * 100_000,
    "numbers": '[{"a": 1}' + ",1" * 400_000,
    "digits": '{"attempts": [{"score": ' + "9" * 1_000_000,
    "null bytes": "\x00" * 1_000_000,
    "fence": "```json\n" * 120_000,
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
def test_hostile_replies_have_a_reason_in_bounded_time(reply):
    began = time.process_time()
    assert reason(reply) == reason(f"x {reply}") == "invalid_json"
    assert time.process_time() - began < 20


def test_mending_changes_nothing_in_sound_json():
    sound = json.dumps({"a, ]": ["// no comment", '\\ " \n \u2028', 1.5], "b": {",}": None}})
    assert json.loads(mend(sound)) == json.loads(sound)


def test_thinking_ends_where_it_says():
    assert without_thinking("<think>a<analysis>b</analysis>c</think>d") == "d"
    assert without_thinking("a<think>b</think>c<THINKING>d</Thinking>e") == "ace"
    assert without_thinking("no <tags> here, [1] and </b>") == "no <tags> here, [1] and </b>"


def test_two_verdicts_are_asked_about_once_more():
    said = iter([f"{GOOD} {OTHER}", f"Sorry. {OTHER}"])
    found = anyio.run(ask, grader(lambda *_: next(said)), TASK, "fire", RESPONSE)
    assert [one.score for one in found.value.attempts] == [50] and found.retries == 1
