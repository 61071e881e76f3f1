"""Cross-judge: which responses are chosen, whole evals with two judges, and planted agreement."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import score
from scoring import DATA, TASK, examples, grader, run, trial, verdict

from esr_eval._util.output import write_frame
from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.logs.replay import Judged, Verdict, choose_judged, read_judged
from esr_eval.provider.api import ESRModelAPI
from esr_eval.report.agreement import agreement_frame, agreement_of, judge_table, pair_table
from esr_eval.scorers.agreement import agreement
from esr_eval.scorers.attempts import attempts, parse_request
from esr_eval.stats.comparisons import clustered_kappa

RESTART = (
    "Fire burns in the hearth {}. Wait, that's not right. Let me start over. Add the numerators."
)
PLAIN = "Find a common denominator {}, then add the numerators."


def by_scores(scores):
    """A judge that gives each response its scores: one, two split at "Wait", none, or unusable."""

    def answer(messages, tools, choice, config):
        response = parse_request(messages).response
        given = scores[response]
        if given is None:
            return "no verdict"
        at = response.find("Wait")
        parts = [response] if len(given) < 2 else [response[:at].strip(), response[at:]]
        return verdict(*((p[:24], p[-12:], s) for p, s in zip(parts, given, strict=False)))

    return grader(answer)


# response: (of record, second judge)
JUDGED = {
    RESTART.format(1): ([5, 90], [10, 80]),  # both several, both up
    RESTART.format(2): ([50, 40], [10, 80]),  # both several, opposite directions
    RESTART.format(3): ([20, 60], [30]),  # the second sees one
    PLAIN.format(1): ([80], [85]),
    PLAIN.format(2): ([70], []),  # the second sees no attempt: not several either
    PLAIN.format(3): ([60], None),  # the second cannot be used
    PLAIN.format(4): (None, [50]),  # unscored in the log: left out
}


def stored(tmp_path, judged=JUDGED, name="main"):
    samples = [trial(text, latent=i % 3, identifier=i, seed=i) for i, text in enumerate(judged)]
    samples += [trial(None, 2, identifier=98), trial("  ", 2, identifier=99)]
    record = by_scores({text: pair[0] for text, pair in judged.items()})
    return run(samples, record, tmp_path / name).location


def cross(tmp_path, source, second, model="mockllm/model", **task_args):
    [log] = inspect_eval(
        "esr_eval/cross_judge",
        model=model,
        model_roles={"second": second},
        task_args={"source": str(source), "graders": "second", **task_args},
        log_dir=str(tmp_path / "cross"),
        display="none",
    )
    assert log.status == "success", log.error
    return log


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed")
    second = by_scores({text: pair[1] for text, pair in JUDGED.items()})
    return cross(folder, stored(folder), second)


def by_scorer(log):
    return {
        one.name: {name: metric.value for name, metric in one.metrics.items()}
        for one in log.results.scores
    }


def test_stored_responses_are_judged_again_and_compared(crossed):
    assert len(crossed.samples) == 6
    meta = crossed.eval.metadata
    assert (meta["experiment_id"], meta["condition"]) == ("cross_judge", "cross-judge")
    assert meta["left_out"] == {
        "unscored by the judge of record": 1,
        "errored": 1,
        "empty response": 1,
    }
    assert meta["graders"] == ["mockllm/grader"] and meta["available"] == 6
    found = by_scorer(crossed)
    record, second = found["judge_of_record"], found["judge_mockllm_grader"]
    assert record["multi_attempt"] == 0.5 and record["esr"] == pytest.approx(2 / 6)
    assert record["first_score"] == pytest.approx(np.mean([5, 50, 20, 80, 70, 60]))
    assert second["agrees"] == pytest.approx(4 / 5)
    assert second["agrees_on_direction"] == pytest.approx(1 / 2)
    assert second["unscored"] == 1
    assert second["multi_attempt"] == pytest.approx(2 / 4), "of trials with an attempt"


def test_nothing_is_generated_but_verdicts(crossed):
    assert set(crossed.stats.model_usage) == {"mockllm/grader"}
    responses = {sample.output.completion for sample in crossed.samples}
    assert responses == {text for text, pair in JUDGED.items() if pair[0] is not None}
    for sample in crossed.samples:
        assert sample.input[0].text == TASK
        assert sample.metadata["cluster"] == f"mockllm/model {sample.metadata['latent']}"


def test_the_report_equals_counts_by_hand(crossed, tmp_path):
    report = agreement_of(crossed.location)
    assert report.responses == 6
    record, second = report.judges
    assert record.name == "mockllm/grader (of record)" and second.name == "mockllm/grader"
    assert (record.judged, record.unscored) == (6, 0)
    assert (second.judged, second.unscored) == (5, 1)
    assert (second.multi_attempt.hits, second.multi_attempt.trials) == (2, 5)
    [pair] = report.pairs
    assert (pair.multi_attempt.hits, pair.multi_attempt.trials) == (4, 5)
    assert pair.multi_attempt.clusters == 3
    # yes-yes 2, yes-no 1, no-no 2: observed 0.8, expected 0.6 * 0.4 + 0.4 * 0.6
    assert pair.kappa.value == pytest.approx((0.8 - 0.48) / (1 - 0.48))
    assert (pair.direction.hits, pair.direction.trials) == (1, 2)
    write_frame(tmp_path / "a.csv", agreement_frame([report]))
    [row] = csv.DictReader((tmp_path / "a.csv").read_text("utf-8").splitlines())
    assert float(row["agreement"]) == 0.8 and row["second_unscored"] == "1"


def test_the_command_prints_it(crossed, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "typer", "esr_eval.cli", "run", "agreement"),
            *(crossed.location, "--csv", str(tmp_path / "a.csv")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "80.0 %" in done.stdout and "0.62" in done.stdout and (tmp_path / "a.csv").is_file()


def test_a_log_scored_twice_is_compared_too(tmp_path):
    path = stored(tmp_path)
    second = by_scores({text: pair[1] for text, pair in JUDGED.items()})
    with pytest.raises(EsrError, match="verdicts of 1 judge"):
        agreement_of(path)
    from inspect_ai.log import read_eval_log, write_eval_log

    twice = score(
        read_eval_log(path),
        attempts(),
        model="mockllm/model",
        model_roles={"grader": second},
        action="append",
        display="none",
    )
    write_eval_log(twice, str(tmp_path / "twice.eval"))
    report = agreement_of(tmp_path / "twice.eval")
    assert [judge.name for judge in report.judges] == [
        "mockllm/grader (attempts)",
        "mockllm/grader (attempts1)",
    ]
    # The failed sample is no response; the empty one has no attempt for either: they agree.
    assert report.responses == 8 and report.judges[0].unscored == 1
    assert (report.pairs[0].multi_attempt.hits, report.pairs[0].multi_attempt.trials) == (5, 6)


def test_the_subject_is_never_loaded_and_the_offline_judge_answers(tmp_path, monkeypatch):
    def load(self):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ESRModelAPI, "_load", load)
    rows = [r for r in examples("episodes.jsonl", "dev") if r["improvement"] > 7][:3]
    texts = [" ".join(part["text"] for part in row["parts"]) for row in rows]
    samples = [
        trial(text, i, identifier=i, label=row["label"])
        for i, (text, row) in enumerate(zip(texts, rows, strict=True))
    ]
    record = by_scores({text: [10, 80] if "Wait" in text else [30] for text in texts})
    source = run(samples, record, tmp_path).location
    log = cross(
        tmp_path,
        source,
        by_scores({text: [90] for text in texts}),
        model="esr/smollm2-135m",
        graders=["esr-judge/offline", "second"],
    )
    report = agreement_of(log.location)
    assert [judge.name for judge in report.judges] == [
        "mockllm/grader (of record)",
        "esr-judge/offline",
        "mockllm/grader",
    ]
    assert len(report.pairs) == 3 and report.judges[1].judged == 3
    assert {s.scores["judge_esr-judge_offline"].metadata["judge"] for s in log.samples} == {
        "esr-judge/offline"
    }


HOSTILE = ["<script>x</script> ![a](http://e.vil)", '{"attempts": []}', "\u202e\x00[bold]x[/bold]"]


def test_hostile_responses_and_verdicts(tmp_path):
    source = stored(tmp_path, {text: ([40], [40]) for text in HOSTILE})
    broken = grader(lambda *_: "<script>x</script> `b` $c$ [red]")
    log = cross(tmp_path, source, broken)
    for sample in log.samples:
        found = sample.scores["judge_mockllm_grader"]
        assert found.reason == "grader_failed" and math.isnan(found.value["agrees"])
        assert not [mark for mark in ("<", "`", "$", "](") if mark in found.explanation]
    report = agreement_of(log.location)
    assert report.pairs[0].multi_attempt is None and report.pairs[0].kappa is None
    assert len(judge_table(report).rows) == 2 and len(pair_table(report).rows) == 1


@pytest.mark.parametrize(
    ("scores", "recorded", "expected"),
    [
        (None, [1, 2], (None, None)),
        ([1, 2], [3, 2], (1, 0)),
        ([1, 2], [2, 3, 9], (1, 1)),
        ([2, 2], [2, 1], (1, 1)),
        ([5], [1, 2], (0, None)),
        ([], [1], (1, None)),
    ],
)
def test_what_agreement_is(scores, recorded, expected):
    found = [None if math.isnan(v) else v for v in agreement(scores, recorded).values()]
    assert tuple(found) == expected


def response(identifier, subject, attempts):
    made = Trial(condition="steered", latent=1, label="x", strength=1, topic="t", seed=0)
    scores = [float(i) for i in range(attempts)]
    return Judged(identifier, subject, made, "q", "r", Verdict("j", scores))


def pool(**counts):
    return [
        response(f"{subject}-{kind}-{i}", subject, 2 if kind == "multi" else 1)
        for subject, (multi, single) in counts.items()
        for kind, count in (("multi", multi), ("single", single))
        for i in range(count)
    ]


def test_all_multi_attempt_responses_are_chosen_and_enough_of_every_model():
    available = pool(big=(30, 900), small=(2, 150), tiny=(0, 20))
    chosen = choose_judged(available, 400, 100, 0)
    subjects = [one.subject for one in chosen]
    assert len(chosen) == 400 and sum(one.multi_attempt for one in chosen) == 32
    assert subjects.count("small") >= 100 and subjects.count("tiny") == 20
    assert chosen == [one for one in available if one in chosen], "order is kept"
    assert choose_judged(available, 400, 100, 0) == chosen != choose_judged(available, 400, 100, 1)
    assert len(choose_judged(available, 5000, 100, 0)) == len(available)


def test_little_room_is_shared_between_the_models():
    chosen = choose_judged(pool(a=(1, 500), b=(0, 500), c=(3, 500)), 30, 100, 0)
    assert sorted(one.subject for one in chosen) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10


def test_a_choice_does_not_depend_on_what_else_there_is():
    few, many = pool(a=(0, 50)), pool(a=(0, 50), b=(0, 500))
    first = {one.id for one in choose_judged(few, 20, 0, 3)}
    order = [one.id for one in choose_judged(many, 300, 20, 3) if one.subject == "a"]
    assert first <= set(order)


def test_more_multi_attempt_responses_than_asked_for_is_told():
    with pytest.raises(EsrError, match="n=5 is less than the 6 multi-attempt"):
        choose_judged(pool(a=(6, 10)), 5, 1, 0)


def test_folders_and_lists_of_logs(tmp_path, crossed):
    first, second = stored(tmp_path, name="logs"), stored(tmp_path, name="other")
    run([trial("x")], grader(["?", "?"]), tmp_path / "logs", scorer=[])
    both = read_judged(f"{tmp_path / 'logs'}, {second}")
    assert len(both.responses) == 12 and len(both.logs) == 2
    assert len(both.notes) == 1 and "no scores of esr_eval/attempts" in both.notes[0]
    assert len(read_judged(f"{first},{first}").responses) == 6, "the same log twice is once"
    for source, problem in (
        (str(tmp_path / "no.eval"), "There is no log"),
        (str(DATA / "judged.jsonl"), "cannot be read"),
        (crossed.location, "no scores of esr_eval/attempts"),
        ("", "no judged response"),
    ):
        with pytest.raises(EsrError, match=problem):
            read_judged(source)


@pytest.mark.parametrize(
    ("task_args", "problem"),
    [
        ({"graders": "third"}, "'third' is no judge: give PROVIDER/MODEL"),
        ({"graders": "grader"}, "'grader' is no judge: .* --model-role grader=PROVIDER/MODEL"),
        ({"graders": ","}, "graders=, is refused"),
        ({"graders": "second", "n": 0}, "n=0 is refused"),
        ({"graders": "esr-judge/nobody"}, "no judge esr-judge/nobody"),
    ],
)
def test_arguments_that_cannot_work_are_told_at_once(task_args, problem, tmp_path):
    with pytest.raises(Exception, match=problem):
        cross(tmp_path, "none.eval", grader([]), **task_args)


def judges(rng, clusters, per_cluster, rate, agreement, spread=0.0):
    """Two judges: with probability `agreement` the second copies the first, else it guesses."""
    rates = np.clip(rng.normal(rate, spread, clusters), 0.01, 0.99).repeat(per_cluster)
    first = rng.random(len(rates)) < rates
    copies = rng.random(len(rates)) < agreement
    second = np.where(copies, first, rng.random(len(rates)) < rate)
    return first.astype(float), second.astype(float), np.arange(clusters).repeat(per_cluster)


def test_kappa_of_a_known_table():
    a = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]).astype(float)
    b = np.repeat([1, 0, 1, 0], [20, 5, 10, 15]).astype(float)
    assert clustered_kappa(a, b, np.arange(50) % 10, resamples=99).value == pytest.approx(0.4)
    assert clustered_kappa(a, a, np.arange(50) % 10, resamples=99).value == 1
    assert clustered_kappa(a, 1 - a, np.arange(50) % 10, resamples=99).value == pytest.approx(
        -0.96, abs=0.1
    )


def test_a_planted_kappa_is_found_and_chance_stays_chance():
    rng = np.random.default_rng(5)
    # Both judges say yes equally often, so kappa is the probability of copying.
    covered = {0.7: 0, 0.0: 0}
    for planted in covered:
        for _ in range(100):
            data = judges(rng, 120, 6, 0.3, planted)
            found = clustered_kappa(*data, resamples=499)
            assert abs(found.value - planted) < 0.2
            covered[planted] += found.low <= planted <= found.high
    assert min(covered.values()) >= 88, covered


def test_rare_events_agree_by_chance_and_kappa_says_so():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        first, second, clusters = judges(rng, 400, 5, 0.06, 0.0)
        assert np.mean(first == second) > 0.84
        found = clustered_kappa(first, second, clusters, resamples=299)
        assert abs(found.value) < 0.12
        covered += found.low is None or found.low <= 0 <= found.high
    assert covered >= 52


def test_judges_that_never_both_say_yes_have_no_interval():
    """No resample would have them agree: its spread says nothing of how rare agreement is."""
    first, second, clusters = judges(np.random.default_rng(1), 400, 5, 0.03, 0.0)
    assert not (first * second).any() and np.mean(first == second) > 0.9
    found = clustered_kappa(first, second, clusters, resamples=299)
    assert -0.1 < found.value < 0 and found.low is None and found.high is None


def test_clustering_widens_the_interval():
    rng = np.random.default_rng(3)
    first, second, _ = judges(rng, 60, 1, 0.4, 0.5)
    one = clustered_kappa(first, second, np.arange(60), resamples=999)
    ten = clustered_kappa(
        first.repeat(10), second.repeat(10), np.arange(60).repeat(10), resamples=999
    )
    as_if = clustered_kappa(first.repeat(10), second.repeat(10), np.arange(600), resamples=999)
    assert ten.value == pytest.approx(one.value) == pytest.approx(as_if.value)
    assert ten.high - ten.low == pytest.approx(one.high - one.low)
    assert as_if.high - as_if.low < 0.5 * (ten.high - ten.low)


def test_kappa_where_it_is_not_defined():
    nan = float("nan")
    assert clustered_kappa([], [], []) is None
    assert clustered_kappa([0, 0, 0], [0, 0, 0], [1, 2, 3]) is None
    assert clustered_kappa([nan, 1], [1, nan], [1, 2]) is None
    alone = clustered_kappa([1, 0, 1], [1, 0, 0], [1, 1, 1])
    assert alone.value == pytest.approx(0.4) and alone.low is None
    rare = clustered_kappa([1] + [0] * 9, [0, 1] + [0] * 8, range(10), resamples=199)
    assert rare.value == pytest.approx(-1 / 9) and json.dumps(rare.value)
