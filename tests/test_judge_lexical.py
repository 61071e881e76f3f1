"""The second offline judge: made differently from the first, and still a judge."""

import json

import pytest
from inspect_ai.model import ChatMessageUser, get_model
from scipy.stats import spearmanr
from scoring import examples

from esr_eval.errors import EsrError
from esr_eval.judges import lexical
from esr_eval.scorers.attempts import ask
from esr_eval.scorers.grader import Request

TASK = "Explain how to bake bread."
LABEL = "oceans and ships"
ON = "Mix the flour and bake the bread in a hot oven. Bread needs time to rise before you bake it."
OFF = "The ships crossed the ocean in a storm. Sailors of many ships saw the oceans rise."


def test_it_agrees_with_hand_scores_better_than_chance():
    found = examples("judged.jsonl")
    scores = [lexical.score(row["text"], row["task"], row["label"]) for row in found]
    correlation = spearmanr(scores, [row["score"] for row in found]).statistic
    assert correlation > 0.6


def test_on_topic_scores_above_off_topic():
    assert lexical.score(ON, TASK, LABEL) > 60 > 20 > lexical.score(OFF, TASK, LABEL)
    assert lexical.score("", TASK, LABEL) == 0


@pytest.mark.parametrize(
    ("response", "count"),
    [
        (ON, 1),
        (f"{OFF} Wait, that is not right. {ON}", 2),
        (f"{OFF}\nSorry, I made a mistake. {ON} Oops! {OFF}", 3),
        (f"Wait, let me think. {ON}", 1),
        ("They wait for ships. People who wait are patient.", 1),
        ("", 0),
        ("...", 0),
    ],
)
def test_attempts_begin_at_cue_words(response, count):
    assert len(json.loads(lexical.verdict(Request(TASK, LABEL, response)))["attempts"]) == count


def test_through_the_graders_protocol():
    judge = get_model("esr-judge/lexical")
    import anyio

    verdict = anyio.run(ask, judge, TASK, LABEL, f"{OFF} Wait, that is wrong. {ON}")
    assert verdict.reason is None
    first, second = verdict.value.attempts
    assert second.score > first.score and second.start > first.end - 2
    with pytest.raises(EsrError, match="only answers grading requests"):
        anyio.run(judge.generate, [ChatMessageUser(content="Hello")])
    with pytest.raises(EsrError, match="there are: offline, lexical"):
        get_model("esr-judge/other")
