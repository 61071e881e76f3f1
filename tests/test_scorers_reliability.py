"""The judge judged again: blind questions, planted noise, stored logs."""

from pathlib import Path

import numpy as np
import pytest
from inspect_ai import score as inspect_score
from inspect_ai.log import read_eval_log, write_eval_log
from scoring import grader, means_of, metrics_of, run, trial, verdict
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.errors import EsrError
from esr_eval.logs.stored import read_stored
from esr_eval.report.page import write_report
from esr_eval.report.reliability import _sentence, reliability_of
from esr_eval.scorers.attempts import Attempt, attempts, grouped_metrics, parse_request
from esr_eval.scorers.reliability import chosen, reliability, texts_alone

RESTART = (
    "Fire burns in the hearth {}. Wait, that's not right. Let me start over. Add {} numerators."
)
PLAIN = "Find a common denominator {}, then add the numerators {}."
ROOT = Path(__file__).resolve().parent.parent


def texts(form, count, start=0):
    return [form.format(i, i) for i in range(start, start + count)]


def parts_of(response):
    at = response.find("Wait")
    return [response] if at < 0 else [response[:at].strip(), response[at:]]


class Noisy:
    """Scores with a known standard deviation; keeps what it was asked."""

    def __init__(self, sd=6.0, seed=0, bias=lambda part, whole: 50):
        self.asked = []
        self.random = np.random.default_rng(seed)
        self.sd, self.bias = sd, bias

    def __call__(self, messages, tools, choice, config):
        self.asked.append(messages)
        response = parse_request(messages).response
        return verdict(
            *(
                (
                    p[:20],
                    p[-12:],
                    int(
                        np.clip(round(self.random.normal(self.bias(p, response), self.sd)), 0, 100)
                    ),
                )
                for p in parts_of(response)
            )
        )

    @property
    def responses(self):
        return [parse_request(messages).response for messages in self.asked]


def judged(samples, judge, tmp_path, share=1.0, seed=0, **task):
    return run(
        samples, grader(judge), tmp_path, scorer=[attempts(), reliability(share, seed)], **task
    )


def samples_of(responses, latents=40, **more):
    return [
        trial(text, latent=i % latents, identifier=f"t{i}", **more)
        for i, text in enumerate(responses)
    ]


def values(log):
    return [sample.scores["reliability"].value for sample in log.samples]


def test_known_noise_is_measured_and_the_flips_are_those_of_noise(tmp_path):
    # No attempt is truly better: improvements are noise, and half of them flip when judged anew.
    log = judged(samples_of(texts(RESTART, 120)), Noisy(sd=6), tmp_path)
    found = metrics_of(log)
    assert found["sd"] == pytest.approx(6, abs=0.9)
    assert found["agrees"] == 1
    assert found["rejudged"] == 120
    assert found["flipped"] == pytest.approx(0.5, abs=0.2)
    # Three standard errors: who gets which noise depends on who asks first.
    assert abs(found["drift"]) < 2.5


def test_a_true_improvement_does_not_flip(tmp_path):
    better = Noisy(sd=3, bias=lambda part, whole: 80 if "numerators" in part else 20)
    found = means_of(judged(samples_of(texts(RESTART, 20)), better, tmp_path))
    assert found["flipped"] == 0
    assert found["change_alone"] == pytest.approx(60, abs=3)


def test_a_judge_that_favours_what_comes_later_is_found_out(tmp_path):
    # It gives the second half of whatever it sees 30 points more; alone, there is no second half.
    later = Noisy(sd=0, bias=lambda part, whole: 70 if whole.find(part) > 0 else 40)
    log = judged(samples_of(texts(RESTART, 20)), later, tmp_path)
    assert means_of(log)["flipped"] == 1
    assert means_of(log)["variance"] == 0


def test_disagreement_on_attempts_is_counted(tmp_path):
    calls = {}

    def forgetful(messages, tools, choice, config):
        response = parse_request(messages).response
        calls[response] = calls.get(response, 0) + 1
        parts = parts_of(response) if calls[response] == 1 else [response]
        return verdict(*((p[:20], p[-12:], 50) for p in parts))

    samples = samples_of(texts(RESTART, 3) + texts(PLAIN, 1))
    log = judged(samples, forgetful, tmp_path)
    assert [one["agrees"] for one in values(log)] == [0, 0, 0, 1]
    assert means_of(log)["agrees"] == 0.25


def test_the_second_question_is_the_first_in_another_fence(tmp_path):
    judge = Noisy()
    judged(samples_of(texts(PLAIN, 1)), judge, tmp_path)
    first, second = judge.asked
    assert first[0].text == second[0].text
    fences = [messages[1].text.split("FENCE: ")[1][:16] for messages in (first, second)]
    assert fences[0] != fences[1]
    assert first[1].text.replace(fences[0], "") == second[1].text.replace(fences[1], "")


def test_attempts_are_shown_alone_shuffled_and_without_the_words_of_a_restart(tmp_path):
    judge = Noisy()
    responses = texts(RESTART, 40)
    log = judged(samples_of(responses), judge, tmp_path)
    alone = [text for text in judge.responses if "Wait" not in text]
    assert sorted(alone) == sorted(
        piece
        for i in range(40)
        for piece in (f"Fire burns in the hearth {i}.", f"Add {i} numerators.")
    )
    first_shown = [
        alone.index(f"Fire burns in the hearth {i}.") < alone.index(f"Add {i} numerators.")
        for i in range(40)
    ]
    assert 8 < sum(first_shown) < 32
    # ... and yet each verdict belongs to its attempt: the order is undone.
    assert log.samples[0].scores["reliability"].metadata["alone"] != []


def test_a_restart_that_the_detector_does_not_know_leaves_the_attempt_whole():
    response = "Fire burns. Xyzzy! Add the numerators."
    pair = [Attempt(0, 11, 10), Attempt(12, len(response), 90)]
    assert texts_alone(response, pair) == ["Fire burns.", "Xyzzy! Add the numerators."]
    # An attempt that is nothing but the words of a restart is shown as it stands.
    response = "Fire burns in the hearth. Wait, that's not right. Let me start over. Wait, no. Let me try again. Add."
    at = response.index("Wait, no.")
    triple = [Attempt(0, 25, 1), Attempt(26, at - 1, 1), Attempt(at, len(response), 1)]
    assert all(texts_alone(response, triple))


def test_which_are_judged_again_depends_on_nothing_but_themselves(tmp_path):
    every = texts(PLAIN, 60)
    whole = judged(samples_of(every), Noisy(), tmp_path / "a", share=0.3)
    again = {s.id for s in whole.samples if s.scores["reliability"].value["rejudged"] == 1}
    assert 8 <= len(again) <= 28
    few = samples_of(every)[20:40][::-1]
    part = judged(few, Noisy(), tmp_path / "b", share=0.3)
    assert {s.id for s in part.samples if s.scores["reliability"].value["rejudged"] == 1} == {
        s.id for s in few if s.id in again
    }
    other = {i for i in range(60) if chosen(f"t{i}:1", 0.3, 1)}
    assert other != {i for i in range(60) if chosen(f"t{i}:1", 0.3, 0)}


def test_the_share_is_the_share():
    hits = sum(chosen(f"{i}:1", 0.2, 0) for i in range(5000))
    assert 900 < hits < 1100
    assert not any(chosen(f"{i}:1", 0.0, 0) for i in range(100))
    assert all(chosen(f"{i}:1", 1.0, 0) for i in range(100))
    for share in (-0.1, 1.1, "all", True, float("nan")):
        with pytest.raises(EsrError, match="from 0 to 1"):
            reliability(share)


def test_a_verdict_that_cannot_be_used_is_counted_and_not_guessed(tmp_path):
    calls = []

    def tired(messages, tools, choice, config):
        calls.append(1)
        return verdict(("Find", "numerators 0.", 50)) if len(calls) == 1 else "no verdict"

    log = judged(samples_of(texts(PLAIN, 1)), tired, tmp_path)
    [value] = values(log)
    assert value["unusable"] == 1
    assert np.isnan([value["agrees"], value["variance"]]).all()
    assert "Unscored" in log.samples[0].scores["reliability"].explanation


def test_empty_and_failed_responses_cost_no_question(tmp_path):
    judge = Noisy()
    log = judged([trial("  ", 1, identifier=1), trial(None, 2, identifier=2)], judge, tmp_path)
    assert not judge.asked
    assert values(log)[0]["rejudged"] == 0
    assert np.isnan(values(log)[1]["rejudged"])


def test_several_epochs_give_the_same_deviation(tmp_path):
    log = judged(samples_of(texts(RESTART, 50)), Noisy(sd=5), tmp_path, epochs=3)
    found = metrics_of(log)
    sd, low, high = (found[key] for key in ("sd", "sd_low", "sd_high"))
    assert sd == pytest.approx(5, abs=0.9)
    assert low < sd < high


def test_a_stored_log_is_judged_again_with_the_verdicts_that_it_holds(tmp_path):
    log = run(samples_of(texts(RESTART, 100)), grader(Noisy(sd=6, seed=1)), tmp_path)
    judge = Noisy(sd=6, seed=2)
    scored = inspect_score(
        log,
        reliability(0.5),
        model="mockllm/model",
        model_roles={"grader": grader(judge)},
        action="append",
        display="none",
    )
    again = [s for s in scored.samples if s.scores["reliability"].value["rejudged"] == 1]
    assert all(s.scores["reliability"].metadata["first_from_log"] for s in again)
    # One question on the whole, two on the attempts; none on what the log already says.
    assert len(judge.asked) == 3 * len(again)
    assert metrics_of(scored)["sd"] == pytest.approx(6, abs=1.5)

    fresh = Noisy(sd=6, seed=3)
    without = inspect_score(
        log,
        reliability(0.5),
        model="mockllm/model",
        model_roles={"grader": grader(fresh)},
        action="overwrite",
        display="none",
    )
    assert len(fresh.asked) == 4 * len(again)
    assert not any(
        (s.scores["reliability"].metadata or {}).get("first_from_log") for s in without.samples
    )


def test_summary_and_report_show_it_beside_the_rates(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    logs = tmp_path / "logs"
    stored = next((ROOT / "logs" / "self-correction").glob("*Y2WNgnbfFmvyzKAeZWmKv8.eval"))
    # Today's offline judge is not the one of then: its detector knows more restarts.
    log = inspect_score(
        read_eval_log(str(stored)),
        attempts(),
        model="mockllm/model",
        action="overwrite",
        display="none",
    )
    again = inspect_score(
        log, reliability(0.5), model="mockllm/model", action="append", display="none"
    )
    logs.mkdir()
    write_eval_log(again, str(logs / "again.eval"))
    values = [one.scores["reliability"].value for one in again.samples]
    rejudged = [value for value in values if value["rejudged"] == 1]
    assert len(rejudged) > 30
    # The offline judge computes: it repeats itself exactly.
    assert {value["variance"] for value in rejudged} == {0}
    table = tmp_path / "table.csv"
    shown = CliRunner().invoke(app, ["summary", "--all", str(logs), "--csv", str(table)])
    assert shown.exit_code == 0, shown.output
    assert "judged again" in shown.output and f" {len(rejudged)} " in shown.output
    assert "score_sd" in table.read_text()
    assert "ESR rate" in shown.output
    page = write_report([logs], tmp_path / "report").read_text()
    assert "How far the judge repeats itself" in page and "repeats itself exactly" in page

    plain = tmp_path / "plain"
    plain.mkdir()
    write_eval_log(log, str(plain / "log.eval"))
    assert "judged again" not in CliRunner().invoke(app, ["summary", "--all", str(plain)]).output


def test_the_margin_is_that_of_the_measured_noise(tmp_path):
    log = judged(samples_of(texts(PLAIN, 60)), Noisy(sd=6), tmp_path)
    [found] = reliability_of("run", read_stored(log.location), "log")
    assert found.rejudged == 60
    assert found.margin == pytest.approx(1.645 * 2**0.5 * found.deviation.value)
    assert found.flipped is None
    assert "noise stays under 5 %" in _sentence(found)


def test_known_noise_is_measured_on_a_committed_log_too(tmp_path):
    stored = next((ROOT / "logs" / "self-correction").glob("*Y2WNgnbfFmvyzKAeZWmKv8.eval"))
    noise = np.random.default_rng(4)

    def noisy(messages, tools, choice, config):
        text = parse_request(messages).response.strip()
        score = int(np.clip(round(noise.normal(50, 6)), 0, 100))
        return verdict((text[:20].strip(), text[-12:].strip(), score))

    # The log's verdicts are another judge's: both are asked for.
    again = inspect_score(
        read_eval_log(str(stored)),
        reliability(1),
        model="mockllm/model",
        model_roles={"grader": grader(noisy)},
        action="append",
        display="none",
    )
    path = str(tmp_path / "again.eval")
    write_eval_log(again, path)
    [found] = reliability_of("run", read_stored(path), "log")
    assert found.rejudged > 90 and not found.unusable
    assert found.deviation.value == pytest.approx(6, abs=1)
    assert found.deviation.low < 6 < found.deviation.high


def test_a_sweep_takes_its_metrics_by_level_whatever_else_is_scored(tmp_path):
    levels = [{"level": level} for level in (-1.0, 1.0)]
    samples = [
        trial(text, latent=i, identifier=f"t{i}", **levels[i % 2])
        for i, text in enumerate(texts(RESTART, 6))
    ]
    scorers = [attempts(), reliability(1.0)]
    by_level = grouped_metrics("level")
    log = run(samples, grader(Noisy()), tmp_path, scorer=scorers, metrics=by_level)
    assert log.status == "success", log.error
    levels = {sample.metadata["level"] for sample in log.samples}
    assert len(levels) > 1
    for level in levels:
        assert {
            f"{key} level {level}" for key in ("multi_attempt", "first_score", "agrees")
        } <= set(metrics_of(log))
