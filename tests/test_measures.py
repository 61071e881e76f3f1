"""Measures that noise cannot make: confirmed restarts, margin, recovery, all restarts of two."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from inspect_ai import score
from inspect_ai.log import read_eval_log, write_eval_log
from scoring import grader, means_of, metrics_of, run, trial, verdict

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import alarms_of, conditions_of, read_scored
from esr_eval.logs.measures import Measured
from esr_eval.logs.stored import read_stored
from esr_eval.report.summary import metric_table
from esr_eval.scorers.attempts import Bars, Outcome, attempts, bars_of, judged_numbers, values

ROOT = Path(__file__).resolve().parent.parent
OFF = "Fire burns in the hearth and warms the whole house all night long. "
WORDS = "Wait, that's not right. Let me start over. "
ON = "Find a common denominator, then add the numerators and simplify the result."
FILL = "The flames are high and red and the embers glow for a long time after that. " * 5


def split_at(*places, scores=(20, 75)):
    """A grader that begins each later attempt at a place of the response."""

    def answer(messages, *_):
        text = messages[-1].text
        response = text[text.index(OFF[:20]) :]
        response = response[: response.index(ON[-20:]) + len(ON[-20:])]
        bounds = [0, *places, len(response)]
        parts = [response[a:b].strip() for a, b in pairwise(bounds)]
        return verdict(*((p[:30], p[-30:], s) for p, s in zip(parts, scores, strict=False)))

    return grader(answer)


def numbers_of(log):
    [sample] = log.samples
    return sample.scores["attempts"].value


@pytest.mark.parametrize(
    ("begins", "confirmed"),
    [
        (len(OFF), 1),
        (len(OFF) + len(WORDS), 1),
        (len(OFF) - 35, 1),
    ],
    ids=["with its words", "behind them", "before them"],
)
def test_a_restart_is_confirmed_wherever_the_judge_puts_its_words(tmp_path, begins, confirmed):
    log = run([trial(OFF + WORDS + ON)], split_at(begins), tmp_path)
    found = numbers_of(log)
    assert found["multi_attempt"] == found["restart_phrase"] == 1
    assert found["confirmed"] == confirmed


@pytest.mark.parametrize(
    "response",
    [OFF + ON, OFF + FILL + ON, OFF + WORDS + FILL + ON, OFF + FILL + "Add the numerators. " + ON],
    ids=["no words at all", "none in a long answer", "words far away", "another step"],
)
def test_an_invented_attempt_is_never_confirmed(tmp_path, response):
    log = run([trial(response)], split_at(len(response) - len(ON)), tmp_path)
    found = numbers_of(log)
    assert found["multi_attempt"] == found["esr"] == 1
    assert found["confirmed"] == 0
    assert "restart not confirmed" in log.samples[0].scores["attempts"].explanation


def test_one_attempt_confirms_nothing(tmp_path):
    log = run([trial(OFF + WORDS + ON)], split_at(scores=(40,)), tmp_path)
    assert numbers_of(log)["confirmed"] == 0
    assert numbers_of(log)["restart_phrase"] == 1


@pytest.mark.parametrize(
    ("scores", "esr", "margin", "recovered"),
    [
        ([40, 41], 1, 0, 0),
        ([40, 49.9], 1, 0, 0),
        ([30, 40], 1, 1, 0),
        ([45, 50], 1, 0, 1),
        ([20, 75], 1, 1, 1),
        ([50, 90], 1, 1, 0),
        ([20, 90, 40], 1, 1, 0),
        ([75, 20], 0, 0, 0),
        ([90], 0, 0, 0),
    ],
)
def test_margin_and_recovery(scores, esr, margin, recovered):
    found = values(Outcome(scores, restarts=0, degraded=False))
    assert (found["esr"], found["esr_margin"], found["recovered"]) == (esr, margin, recovered)


def test_what_is_not_judged_has_no_measure():
    for outcome in (None, Outcome(None, 0, False), Outcome([], 0, False)):
        found = values(outcome)
        keys = ("confirmed", "esr_margin", "recovered", "recovered_sound")
        assert all(math.isnan(found[key]) for key in keys)


def test_degenerate_trials_drop_out_of_the_sound_rates_alone():
    found = values(Outcome([20, 75], 1, degraded=False, degenerate=True, confirmed=True))
    assert found["esr"] == found["esr_clean"] == found["recovered"] == 1
    assert all(math.isnan(found[f"{key}_sound"]) for key in ("esr", "recovered", "first_score"))


def test_each_judge_has_its_own_score_of_a_recovery():
    assert bars_of("openai/gpt-5") == Bars(10, 50)
    assert bars_of("esr-judge/offline") == Bars(10, 79)
    assert bars_of("esr-judge/offline", 15, 60) == Bars(15, 60)


@pytest.mark.parametrize("wrong", [0, -5, 101, float("nan"), "ten", True])
def test_bars_off_the_scale_are_refused(wrong):
    with pytest.raises(EsrError, match="at most 100"):
        attempts(margin=wrong)
    with pytest.raises(EsrError, match="at most 100"):
        attempts(recovery=wrong)


def test_bars_are_arguments_on_the_command_line_and_stand_in_the_log(tmp_path):
    log = run([trial(OFF + WORDS + ON, 1)], split_at(len(OFF), scores=(40, 55)), tmp_path)
    assert (numbers_of(log)["esr_margin"], numbers_of(log)["recovered"]) == (1, 1)
    command = [sys.executable, "-m", "inspect_ai", "score", log.location, "--overwrite"]
    command += ["--scorer", "esr_eval/attempts", "--action", "append", "--display", "plain"]
    command += ["-S", "margin=16", "-S", "recovery=60"]
    command += ["--model-role", "grader=esr-judge/lexical"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = read_eval_log(log.location)
    [name] = [key for key in again.samples[0].scores if key != "attempts"]
    details = again.samples[0].scores[name].metadata
    assert (details["margin"], details["recovery"]) == (16, 60)
    assert "Margin 16; recovered from below 60" in again.samples[0].scores[name].explanation
    shown = [one.bars for one in read_scored(log.location)]
    assert shown == ["margin 10, recovery 50", "margin 16, recovery 60"]


# Noise


def noisy_scores(deviation, restarts=100_000, seed=7):
    """First and last scores of attempts of the same worth, by a judge of that noise."""
    rng = np.random.default_rng(seed)
    worth = rng.uniform(15, 45, restarts)[:, None]
    return np.clip(np.rint(worth + rng.normal(0, deviation, (restarts, 2))), 0, 100)


def rates_of_noise(deviation, rate=0.074):
    numbers = [judged_numbers(pair, True, Bars()) for pair in noisy_scores(deviation).tolist()]
    return {key: rate * np.mean([one[key] for one in numbers]) for key in ("esr", "esr_margin")}


def test_noise_alone_makes_half_of_the_restarts_an_esr_but_no_margin():
    """A judge that scatters by 5, 7.4 % restarts, and none of them any better."""
    found = rates_of_noise(5)
    assert 0.45 < found["esr"] / 0.074 < 0.5
    assert found["esr_margin"] < 0.01


@pytest.mark.parametrize(("deviation", "holds"), [(2, True), (4, True), (6, True), (7, False)])
def test_up_to_which_noise_the_default_margin_holds(deviation, holds):
    assert (rates_of_noise(deviation)["esr_margin"] < 0.01) == holds


# All restarts, in logs


def answer_by(judged):
    """A grader that finds two attempts in the answers of those numbers."""

    def answer(messages, *_):
        text = messages[-1].text
        number = int(text[text.index("Number ") + 7 :].split(".")[0])
        ends = (f"Number {number}.", "the result.")
        if number not in judged:
            return verdict((ends[0], ends[1], 30))
        return verdict(
            (ends[0], "night long.", 20),
            ("Wait, that's" if "Wait" in text else "Find", ends[1], 75),
        )

    return grader(answer)


def restarting(folder, judged, detected, count=24, condition="steered"):
    samples = [
        trial(
            f"Number {n}. {OFF}{WORDS if n in detected else ''}{ON}",
            n % 6,
            identifier=n,
            condition=condition,
            topic=f"task {n}",
        )
        for n in range(count)
    ]
    return run(samples, answer_by(judged), folder)


def test_a_log_has_three_counts_and_what_they_imply(tmp_path):
    log = restarting(tmp_path, judged={0, 1, 2, 3, 4}, detected={1, 2, 3, 4, 5, 6})
    found = means_of(log)
    means = {key: found[key] for key in ("multi_attempt", "restart_phrase", "confirmed")}
    assert means == {"multi_attempt": 5 / 24, "restart_phrase": 6 / 24, "confirmed": 4 / 24}
    estimate = ((5 + 1) * (6 + 1) / (4 + 1) - 1) / 24
    [one] = read_scored(log.location)
    assert isinstance(one.all_restarts, Measured)
    assert one.all_restarts.value == pytest.approx(estimate)
    assert one.all_restarts.low < estimate < one.all_restarts.high
    assert one.measures["confirmed"].value == metrics_of(log)["confirmed"] == 4 / 24
    assert "independently" in metric_table([one]).notes


def test_without_a_shared_restart_there_is_no_estimate_and_it_is_said(tmp_path):
    log = restarting(tmp_path, judged={0, 1}, detected={5, 6})
    [one] = read_scored(log.location)
    assert one.all_restarts == "judge and phrase detector share no restart"
    assert "share no restart" in metric_table([one]).notes


def test_a_judge_that_splits_by_the_detector_gets_no_estimate(tmp_path):
    log = restarting(tmp_path, judged={0}, detected={0, 1, 2, 3})
    again = score(
        log,
        attempts(),
        model="mockllm/model",
        model_roles={"grader": "esr-judge/offline"},
        action="overwrite",
        display="none",
    )
    assert metrics_of(again)["confirmed"] > 0
    assert not any(math.isnan(value) for value in metrics_of(again).values())
    write_eval_log(again, str(tmp_path / "again.eval"))
    [one] = read_scored(tmp_path / "again.eval")
    assert one.all_restarts.startswith("esr-judge/offline splits answers by the phrase detector")
    assert again.samples[0].scores["attempts"].metadata["recovery"] == 79


def test_false_alarms_are_those_of_the_same_subject_and_judge(tmp_path):
    steered = restarting(tmp_path / "a", judged={0, 1}, detected={0, 1})
    plain = restarting(tmp_path / "b", judged={3}, detected={3, 4, 5}, condition="unsteered")
    conditions = conditions_of([read_stored(log.location) for log in (steered, plain)])
    for one in conditions:
        found = alarms_of(one, conditions)
        assert (found.judge.hits, found.detector.hits, found.judge.n) == (1, 3, 24)
        assert found.detector.low < 3 / 24 < found.detector.high
    assert alarms_of(conditions[0], conditions[:1]) is None
    table = {row[0]: row[1:] for row in metric_table(conditions).rows if row}
    assert table["false alarms: judge"][0].startswith("4.2 %")
    assert table["false alarms: phrases"][0].startswith("12.5 %")


def test_a_log_of_before_tells_what_follows_from_its_attempts_and_how_to_get_the_rest(tmp_path):
    log = restarting(tmp_path, judged={0, 1, 2}, detected={1, 2, 3})
    old = read_eval_log(log.location)
    new = ("confirmed", "esr_margin", "recovered", "degenerate")
    for sample in old.samples:
        held = sample.scores["attempts"]
        held.value = {
            k: v for k, v in held.value.items() if not k.endswith("_sound") and k not in new
        }
        for name in ("margin", "recovery"):
            del held.metadata[name]
    write_eval_log(old, str(tmp_path / "old.eval"))
    [before], [today] = read_scored(tmp_path / "old.eval"), read_scored(log.location)
    assert before.lacking and not today.lacking
    for key in ("confirmed", "esr_margin", "recovered"):
        assert before.measures[key] == today.measures[key]
    assert before.all_restarts == today.all_restarts
    assert "degenerate" not in before.measures
    assert "inspect score" in metric_table([before]).notes
    assert "inspect score" not in metric_table([today]).notes


def test_the_tuned_subjects_restarts_recover_nothing_as_read_by_hand():
    """docs/embedded.md lists the 25 restarts: none answers its task."""
    logs = sorted((ROOT / "logs" / "self-correction").glob("*finetuned*.eval"))
    conditions = [one for log in logs for one in read_scored(log)]
    [tuned] = [
        one
        for one in conditions
        if one.steering == "steered" and "boost off" not in one.log.condition
    ]
    assert tuned.measures["multi_attempt"].hits >= 10
    assert tuned.measures["recovered"].hits == 0
    assert tuned.measures["esr_margin"].hits < tuned.measures["esr"].hits


def test_the_constant_of_a_recovery_is_what_unsteered_answers_reach():
    logs = [
        *(ROOT / "logs" / "self-correction").glob("*.eval"),
        *(ROOT / "logs" / "baseline").glob("*.eval"),
    ]
    scores = [
        value
        for log in logs
        for one in read_scored(log)
        if one.steering == "unsteered"
        for value in one.by_trial("first_score").values()
    ]
    assert len(scores) > 200
    assert np.quantile(scores, 0.05) == pytest.approx(bars_of("esr-judge/offline").recovery, abs=3)
