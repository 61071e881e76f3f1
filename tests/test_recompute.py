"""The independent recomputation agrees with real logs, and finds what was tampered with."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import zipfile_zstd  # noqa: F401
from inspect_ai.log import read_eval_log
from scoring import grader, run, trial, verdict

from esr_eval.scorers.attempts import HEADLINES, grouped_metrics, parse_request
from esr_eval.scorers.scores import COUNTS

ROOT = Path(__file__).resolve().parent.parent
BASELINE = sorted((ROOT / "logs" / "baseline").glob("*.eval"))
PLAIN = "Find a common denominator, then add the numerators."


def recompute(*logs):
    command = [sys.executable, str(ROOT / "scripts" / "recompute.py"), *map(str, logs)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout


def tampered(log, target, member, change):
    """A copy of the log in which one member's JSON was changed."""
    with zipfile.ZipFile(log) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = json.loads(old.read(name))
            if name.startswith(member):
                change(data)
                member = "nothing else"
            new.writestr(name, json.dumps(data))
    return target


def test_the_committed_logs_say_what_their_scores_say():
    assert len(BASELINE) == 2
    status, said = recompute(*BASELINE)
    assert status == 0, said
    # A log of before has fewer values.
    for log in BASELINE:
        count = len(read_eval_log(str(log), header_only=True).results.scores)
        assert f"{count} of {count} equal" in said
    assert said.count("24 trials, 0 with an error; status success") == 2


def test_a_changed_score_is_found(tmp_path):
    def better(sample):
        sample["scores"]["attempts"]["value"]["first_score"] += 1

    status, said = recompute(tampered(BASELINE[0], tmp_path / "log.eval", "samples/", better))
    assert status == 1
    assert said.count("DIFFERENT") == 1
    assert "DIFFERENT" in next(line for line in said.splitlines() if "/first_score " in line)


def test_a_changed_result_is_found_to_the_last_digits(tmp_path):
    def nudge(header):
        [score] = [s for s in header["results"]["scores"] if s["name"] == "first_score"]
        score["metrics"]["mean"]["value"] *= 1 + 1e-14

    status, said = recompute(tampered(BASELINE[0], tmp_path / "log.eval", "header.json", nudge))
    assert status == 1
    assert said.count("DIFFERENT") == 1


def test_a_log_without_our_scores_is_not_agreement(tmp_path):
    def strip(header):
        header["results"]["scores"] = []

    status, said = recompute(tampered(BASELINE[0], tmp_path / "log.eval", "header.json", strip))
    assert status == 1 and "no mean of ours" in said


@pytest.mark.parametrize("grouped", [False, True])
def test_unscored_errored_epochs_and_groups(tmp_path, grouped):
    """Two epochs, one trial without a usable verdict, one that fails: undefined stays out."""

    def answer(messages, *_):
        number = int(parse_request(messages).response.split()[-1])
        return "?" if number == 4 else verdict((PLAIN[:9], PLAIN[-9:], 10 + number))

    samples = [trial(f"{PLAIN} {i}", i % 3, identifier=i, level=float(i % 2)) for i in range(6)]
    samples.append(trial(None, 1, identifier=9, level=0.0))
    more = {"metrics": grouped_metrics("level")} if grouped else {}
    log = run(samples, grader(answer), tmp_path, epochs=2, **more)
    status, said = recompute(log.location)
    assert status == 0, said
    assert "14 trials, 2 with an error" in said
    counted = next(line for line in said.splitlines() if "/errored " in line)
    assert "= 2 trials" in counted
    first = [line for line in said.splitlines() if "/first_score " in line]
    assert sum(int(line.partition("n=")[2].split()[0]) for line in first) == 2 * 5
    means = [float(line.split("n=")[1].split()[1]) for line in first]
    assert means == ([11, 13] if grouped else [pytest.approx(61 / 5)])


RESTART = "Fire burns in the hearth. Wait, that's not right. Let me start over. "


def judged_log(folder, count=12):
    """Trials of which some restart, by a judge that misses some and invents one."""

    def answer(messages, *_):
        response = parse_request(messages).response
        number = int(response.split()[-1])
        at = response.find("Wait")
        if at < 0 and number != 1:
            return verdict((response[:9], response[-9:], 60))
        if number % 4 == 0:
            return verdict((response[:9], response[-9:], 20))
        at = at if at > 0 else 20
        return verdict(
            (response[:9], response[at - 9 : at], 20), (response[at : at + 9], response[-9:], 75)
        )

    texts = [(RESTART if number % 2 == 0 else "") + f"{PLAIN} {number}" for number in range(count)]
    samples = [trial(text, number % 3, identifier=number) for number, text in enumerate(texts)]
    return run(samples, grader(answer), folder)


def test_new_measures_are_derived_from_the_attempts_and_restarts(tmp_path):
    log = judged_log(tmp_path)
    status, said = recompute(log.location)
    assert status == 0, said
    count = len(HEADLINES) + len(COUNTS)
    assert f"{count} of {count} equal" in said
    assert "derived from the attempts of 12 trials: equal" in said


def with_estimate(header, share):
    """The header as versions before 0.2 wrote it, with the estimate of all restarts."""
    found = {"name": "share", "value": share}
    header["results"]["scores"].append(
        {
            "name": "confirmed",
            "scorer": "attempts",
            "metrics": {"esr_eval/all_restarts_share": found},
        }
    )


def test_a_stored_estimate_follows_from_the_three_counts(tmp_path):
    log = judged_log(tmp_path)
    share = ((4 + 1) * (6 + 1) / (3 + 1) - 1) / 12
    changed = tampered(
        log.location, tmp_path / "log.eval", "header.json", lambda h: with_estimate(h, share)
    )
    status, said = recompute(changed)
    assert status == 0, said
    [line] = [line for line in said.splitlines() if "/all_restarts" in line]
    # Judge: 2, 6, 10 and the invented 1; phrases: the six even ones; both: 2, 6, 10.
    assert float(line.split()[1]) == pytest.approx(share)
    assert line.endswith("equal")


@pytest.mark.parametrize("key", ["confirmed", "esr_margin", "recovered"])
def test_a_value_that_its_attempts_do_not_bear_out_is_found(tmp_path, key):
    log = judged_log(tmp_path)

    def invent(sample):
        sample["scores"]["attempts"]["value"][key] = 1 - sample["scores"]["attempts"]["value"][key]

    status, said = recompute(tampered(log.location, tmp_path / "log.eval", "samples/", invent))
    assert status == 1
    assert "DIFFERENT in 1 values" in said


def test_a_changed_estimate_is_found(tmp_path):
    log = judged_log(tmp_path)

    def nudge(header):
        with_estimate(header, 0.65 * 1.01)

    status, said = recompute(tampered(log.location, tmp_path / "log.eval", "header.json", nudge))
    assert status == 1
    assert "DIFFERENT" in next(line for line in said.splitlines() if "/all_restarts" in line)
