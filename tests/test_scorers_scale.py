"""Judges of another scale, and keys that must not reach a log."""

import json
import logging

import pytest
from scoring import grader, metrics_of, run, trial, verdict

from esr_eval.scorers.attempts import grouped_metrics
from esr_eval.scorers.improvement import improvement
from esr_eval.scorers.scores import scale_doubt, warn_of_scale

NAN = float("nan")
RESPONSE = "Find a common denominator, then add the numerators."


@pytest.mark.parametrize(
    ("scores", "top", "doubtful"),
    [
        ([0, 1, 1], 100, True),
        ([1] * 30, 100, True),
        ([0] * 29 + [1], 100, True),
        ([7, 10, 3, 0, 9, 8, 2, 10, 5, 6], 100, True),
        ([0, 1, NAN, 1, 0], 10, True),
        ([0] * 50, 100, False),
        ([0, 1], 100, False),
        ([10, 5, 0], 100, False),
        ([0, 1, 11] * 9, 100, False),
        ([0, 5, 10, 7], 10, False),
        ([NAN, NAN], 100, False),
        ([], 100, False),
    ],
)
def test_another_scale_is_suspected_from_all_scores(scores, top, doubtful):
    said = scale_doubt(scores, top)
    assert (said is not None) == doubtful
    if doubtful:
        assert f"on a scale up to {top}" in said and "\n" not in said


def judge_of(*scores):
    rest = iter(scores)
    return grader(lambda *_: verdict((RESPONSE[:8], RESPONSE[-8:], next(rest))))


def test_a_judge_that_gives_only_0_and_1_is_warned_about(tmp_path, caplog):
    samples = [trial(RESPONSE, latent=at, identifier=at) for at in range(6)]
    log = run(samples, judge_of(0, 1, 1, 0, 1, 1), tmp_path)
    assert metrics_of(log)["other_scale"] == 1
    [warned] = [one for one in caplog.records if "another scale" in one.getMessage()]
    assert "mockllm/grader" in warned.getMessage() and "above 1," in warned.getMessage()
    caplog.clear()
    log = run(samples, judge_of(0, 1, 90, 0, 1, 1), tmp_path)
    assert "other_scale" not in metrics_of(log)
    assert "another scale" not in caplog.text


def test_it_is_every_attempt_that_counts(tmp_path):
    response = f"{RESPONSE} Wait, no. {RESPONSE}"
    said = verdict((RESPONSE[:8], RESPONSE[-8:], 1), ("Wait, no.", RESPONSE[-8:], 80))
    samples = [trial(response, latent=at, identifier=at) for at in range(4)]
    found = metrics_of(run(samples, grader(lambda *_: said), tmp_path))
    assert found["first_score"] == 1 and "other_scale" not in found


def test_grouped_metrics_and_the_second_view_warn_as_well(tmp_path):
    samples = [trial(RESPONSE, latent=at, identifier=at, level=at % 2) for at in range(6)]
    log = run(samples, judge_of(0, 1, 1, 0, 1, 1), tmp_path, metrics=grouped_metrics("level"))
    assert metrics_of(log)["other_scale"] == 1
    said = json.dumps({"improvement": 1, "kind": "gradual"})
    log = run(samples, grader(lambda *_: said), tmp_path, scorer=improvement())
    assert metrics_of(log)["other_scale"] == 1


def test_metrics_computed_again_and_again_do_not_repeat_the_warning(caplog):
    with caplog.at_level(logging.WARNING):
        for count in range(1, 101):
            warn_of_scale([1] * count, "judge/again")
    assert 1 <= len(caplog.records) <= 7
    caplog.clear()
    warn_of_scale([1] * 10, "judge/again")
    assert len(caplog.records) == 1, "another run is warned about anew"
    warn_of_scale([1] * 10, "judge/again")
    assert len(caplog.records) == 1, "the last metrics of a run are computed twice"
    warn_of_scale([1] * 9 + [0], "judge/again")
    assert len(caplog.records) == 2, "another run of as many samples is warned about anew"
