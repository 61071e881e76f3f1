"""Judges on trial: the passages, how restarts are matched, the command with judges of all sorts."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from scoring import grader, verdict
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.cli.judging import try_judges
from esr_eval.data.passages import Passage, choose_passages, read_passages
from esr_eval.errors import EsrError
from esr_eval.report.judges import (
    Seen,
    detector_trial,
    kind_table,
    restart_table,
    restarts_of,
    score_table,
    scores_of,
)
from esr_eval.scorers.attempts import parse_request
from esr_eval.scorers.passages import NEAR, Place, match
from esr_eval.scorers.phrases import find_restarts

FIRST = "The moon pulls the fractions over the sand and back again every night."
AGAIN = "Wait, that's not right. Let me start over. Find a common denominator and add."
PLAIN = "Find a common denominator, rewrite both fractions, and add the numerators."


def passage(*attempts, kind="start_over", split="own", **more):
    return {
        "split": split,
        "kind": kind,
        "task": "Explain how to add two fractions.",
        "label": "tides",
        "text": " ".join(text for text, _ in attempts),
        "attempts": [{"first": text[:20], "score": score} for text, score in attempts],
    } | more


EVERY = [
    passage((FIRST, 10), (AGAIN, 90)),
    passage((FIRST, 20), (AGAIN, 80), kind="late"),
    passage((PLAIN, 95), kind="plain"),
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in EVERY), "utf-8")
    return file


def trial(judge, file, folder):
    trials, failures = try_judges([judge], {"file": str(file)}, None, str(folder), None, quiet=True)
    assert not failures
    return trials[0]


def told(*pieces):
    return verdict(*((text[:24], text[-20:], score) for text, score in pieces))


def response_of(messages):
    return parse_request(messages).response


def author(messages, tools, choice, config):
    """A judge that sees what the author put there, five points more."""
    text = response_of(messages)
    at = text.find("Wait")
    return told((text[:at].strip(), 15), (text[at:], 95)) if at > 0 else told((text, 100))


def inventing(messages, tools, choice, config):
    """Every response has a second attempt, at its last words."""
    text = response_of(messages)
    half = text.rfind(" ", 0, len(text) - 12) + 1
    return verdict((text[:20], text[half - 12 : half].strip(), 0), (text[half:], text[-6:], 100))


def test_a_judge_like_the_author_finds_all_and_its_bias_is_measured(own, tmp_path):
    found = trial(grader(author), own, tmp_path)
    counts = restarts_of(found.seen)
    assert (counts.labelled, counts.found, counts.invented, counts.missed) == (2, 2, 0, 0)
    assert counts.recall.estimate.value == counts.precision.estimate.value == 1
    scores = scores_of(found.seen)
    # 15 - 10, 95 - 90; 15 - 20, 95 - 80; 100 - 95
    assert scores.attempts == 5
    assert scores.error.value == pytest.approx(7)
    assert scores.bias.value == pytest.approx(5)


def test_restarts_count_where_nobody_scored_the_attempts(tmp_path):
    file = tmp_path / "unscored.jsonl"
    bare = [one | {"attempts": [{"first": a["first"]} for a in one["attempts"]]} for one in EVERY]
    file.write_text("".join(json.dumps(one) + "\n" for one in bare), "utf-8")
    found = trial(grader(author), file, tmp_path)
    counts = restarts_of(found.seen)
    assert (counts.labelled, counts.found, counts.invented) == (2, 2, 0)
    assert scores_of(found.seen) is None
    log = read_eval_log(list_eval_logs(str(tmp_path))[0].name)
    assert (
        f"Labelled: at 0 → at {len(FIRST) + 1}" in log.samples[0].scores["on_passage"].explanation
    )


def test_nothing_is_learned_from_the_passages_that_are_kept():
    turns = Path(__file__).resolve().parent.parent / "scripts" / "turns"

    def texts(*folders):
        files = [file for folder in folders for file in (turns / folder).glob("*.jsonl")]
        return {one.text for file in files for one in read_passages(file)}

    kept, whole = texts("kept", "unseen"), texts("learned")
    learned = whole | {one.text for one in read_passages() if one.split == "dev"}
    for file in turns.glob("*.jsonl"):
        for one in map(json.loads, file.read_text("utf-8").splitlines()):
            learned.add(one.get("text") or one["before"] + one["turn"] + one["after"])
    shipped = {one.text for one in read_passages() if one.split != "dev"}
    assert len(whole) > 1_600 and len(kept) > 800 and len(learned) > 5_000
    assert not (kept | shipped) & learned


def test_a_judge_that_invents_second_attempts_is_found_out(own, tmp_path):
    counts = restarts_of(trial(grader(inventing), own, tmp_path).seen)
    assert (counts.found, counts.invented, counts.missed) == (2, 1, 0) or counts.invented == 3
    assert counts.false_alarms.estimate.value == 1


def test_replies_that_are_garbage_are_counted_and_nothing_else(own, tmp_path):
    found = trial(grader(lambda *asked: "I like turtles."), own, tmp_path)
    counts = restarts_of(found.seen)
    assert (counts.passages, counts.unusable, counts.labelled, counts.invented) == (3, 3, 0, 0)
    assert counts.recall is None and scores_of(found.seen) is None
    # Each was asked a second time, and both replies were paid for.
    assert (found.spent.read, found.spent.written) == (6, 6)
    assert restart_table([found]).rows and score_table([found]).rows


def test_a_slow_judge_is_shown_to_be_slow(own, tmp_path):
    def slow(messages, tools, choice, config):
        time.sleep(0.3)
        return author(messages, tools, choice, config)

    quick = trial(grader(author), own, tmp_path / "a").spent.seconds
    assert trial(grader(slow), own, tmp_path / "b").spent.seconds >= 0.3 > quick


def test_what_a_verdict_costs_is_counted_by_its_tokens(own, tmp_path):
    [found], _ = try_judges(
        [grader(author)], {"file": str(own)}, None, str(tmp_path), (2.0, 10.0), quiet=True
    )
    assert found.spent.dollars == pytest.approx((3 * 2 + 3 * 10) / 1e6)


def test_restarts_count_by_place():
    there = [Place(100), Place(400)]
    assert match(there, [Place(100 + NEAR)]).missed == 1
    assert match(there, [Place(101 + NEAR)]) == ([], 1, 2)
    # One found restart stands for one labelled, and the closest.
    two = match([Place(100), Place(180)], [Place(178)])
    assert two.pairs == [(Place(180), Place(178))] and two.missed == 1
    twice = match([Place(100)], [Place(90), Place(120)])
    assert (len(twice.pairs), twice.invented, twice.missed) == (1, 1, 0)
    # A restart elsewhere is both invented and a miss, though the number is right.
    wrong = restarts_of(
        [Seen("own", "k", [Place(0, 1), Place(500, 2)], [Place(0, 1), Place(50, 2)])]
    )
    assert (wrong.found, wrong.invented, wrong.missed) == (0, 1, 1)


def test_the_detector_row_is_the_detector(own):
    seen = detector_trial(read_passages(own))
    counts = restarts_of(seen.seen)
    expected = sum(bool(find_restarts(one["text"])) for one in EVERY)
    assert counts.found + counts.invented == expected == 2
    assert counts.false_alarms.estimate.value == 0
    assert score_table([seen]) is None
    assert [row[2] for row in kind_table([seen]).rows] == ["start_over", "late", "plain"]


def test_the_command_prints_a_row_a_judge_and_the_detector(own, tmp_path):
    args = ["judges", "--passages", str(own), "--log-dir", str(tmp_path / "l")]
    done = CliRunner().invoke(app, [*args, "esr-judge/lexical", "mockllm/model", "--by-kind"])
    assert done.exit_code == 0, done.output
    for name in ("esr-judge/lexical", "mockllm/model", "phrase detector", "start_over", "late"):
        assert name in done.output
    # The logs of such a trial are no experiment's: tables of rates leave them out.
    left = CliRunner().invoke(app, ["summary", str(tmp_path / "l")])
    assert left.exit_code == 1 and "Left out" in left.output


def test_json_is_json_and_nothing_else(own, tmp_path):
    code = "from esr_eval.cli import app; app()"
    args = ["judges", "esr-judge/lexical", "--json", "--passages", str(own)]
    done = subprocess.run(
        [sys.executable, "-c", code, *args, "--log-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    judge, detector = json.loads(done.stdout)["judges"]
    assert judge["judge"] == "esr-judge/lexical" and detector["judge"] == "phrase detector"
    assert judge["all"]["passages"] == 3 and judge["spent"]["dollars"] == 0
    assert detector["scores"] is None and detector["splits"]["own"]["restarts"] == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["esr-judge/nobody"], "There is no judge esr-judge/nobody"),
        (["nosuch/model"], "nosuch"),
        (["esr-judge/self"], "name it with --model esr/NAME"),
        (["self", "--model", "mockllm/model"], "judges with esr/NAME"),
        (["esr-judge/lexical", "--model", "esr/smollm2-135m"], "leave it out"),
        (["esr-judge/lexical", "esr-judge/lexical"], "name each once"),
        (["--split", "held-out"], "There is no passage of the split held-out"),
        (["--passages", "none.jsonl"], "there is no such file"),
        (["--limit", "0"], "--limit 0 is refused"),
        (["anthropic/claude-haiku-4-5-20251001"], "set ANTHROPIC_API_KEY, or name another judge"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_anything_is_asked(args, said, run_in, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    done = CliRunner().invoke(app, ["judges", *args])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert not list_eval_logs(str(run_in / "logs"))


def test_a_hosted_judge_is_estimated_first(run_in, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-not-a-key-0000")
    args = ["judges", "anthropic/claude-haiku-4-5-20251001", "esr-judge/lexical", "--dry-run"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0
    assert f"{len(read_passages())} verdicts" in done.output and "$0." in done.output
    unknown = CliRunner().invoke(app, ["judges", "anthropic/claude-x", "--dry-run"])
    assert "a price that is not known" in unknown.output
    priced = CliRunner().invoke(
        app, ["judges", "anthropic/claude-x", "--dry-run", "--judge-price", "1000", "0"]
    )
    assert "$" in priced.output and "not known" not in priced.output


def test_a_judge_that_breaks_does_not_lose_the_others(own, tmp_path):
    def broken(messages, tools, choice, config):
        raise EsrError("The judge is out of order.")

    trials, failures = try_judges(
        [grader(broken), grader(author)], {"file": str(own)}, None, str(tmp_path), None, quiet=True
    )
    assert len(trials) == 1 and len(failures) == 1
    assert "out of order" in failures[0]


def test_the_log_keeps_every_verdict_beside_the_authors(own, tmp_path):
    trial(grader(author), own, tmp_path)
    log = read_eval_log(list_eval_logs(str(tmp_path))[0].name)
    score = log.samples[0].scores["on_passage"]
    assert score.value["found"] == 1 and score.value["score_error"] == 5
    assert [one["score"] for one in score.metadata["attempts"]] == [15, 95]
    assert "latent" not in log.samples[0].metadata


def test_shipped_passages_are_valid_and_of_all_splits():
    found = read_passages()
    assert {one.split for one in found} == {"dev", "fresh", "held_out"}
    assert any(len(one.attempts) == 1 for one in found)
    assert any(len(one.attempts) > 1 for one in found)


@pytest.mark.parametrize(
    "broken",
    [
        "no json",
        "[1]",
        json.dumps(passage((FIRST, 10), (AGAIN, 101))),
        json.dumps(passage((FIRST, 10), text="Something else.")),
        json.dumps(passage((FIRST, 10), attempts=[])),
        json.dumps(passage((FIRST, 10), split="mine")),
        json.dumps(passage((FIRST, 10), more=1)),
        # In the wrong order: the second stands before the first.
        json.dumps(
            passage(
                (FIRST, 1),
                (AGAIN, 2),
                attempts=[{"first": AGAIN[:20], "score": 2}, {"first": FIRST[:20], "score": 1}],
            )
        ),
    ],
)
def test_a_line_that_is_no_passage_is_named(broken, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(EVERY[0]) + "\n\n" + broken + "\n")
    with pytest.raises(EsrError, match=r"Line 3 of .* is no passage"):
        read_passages(file)


def test_limit_draws_by_the_seed_and_keeps_the_order():
    every = [Passage.model_validate(passage((f"{FIRST} {i}", 5))) for i in range(50)]
    few = choose_passages(every, None, 10, 1)
    assert few == choose_passages(every, None, 10, 1) != choose_passages(every, None, 10, 2)
    places = [every.index(one) for one in few]
    assert places == sorted(places) and len(set(places)) == 10
    assert choose_passages(every, "own", 99, 0) == every
