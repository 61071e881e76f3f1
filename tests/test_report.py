"""The report: real logs of a stand-in subject with planted restarts, read back from its files."""

import base64
import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from detection import MODEL, install
from evals import embedded
from inspect_ai import eval as inspect_eval
from inspect_ai import score as inspect_score
from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries, write_eval_log
from inspect_ai.model import ModelConfig
from scoring import grader, run, trial, verdict
from simulation import SimulatedJudge

from esr_eval._util.paths import CACHE_ENV
from esr_eval.data.experiments import EXPERIMENTS
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import conditions_of, read_values, shared_trials
from esr_eval.logs.measures import Measured
from esr_eval.logs.stored import read_logs
from esr_eval.report import episodes
from esr_eval.report.evidence import compare_with_main
from esr_eval.report.page import write_report
from esr_eval.report.published import JUDGE_OF_RECORD, Figure, compare, published, verdicts
from esr_eval.scorers.attempts import attempts
from esr_eval.scorers.improvement import improvement
from esr_eval.stats.comparisons import compare_pairs
from esr_eval.subjects import find_subject
from esr_eval.text import one_line, shown

ROOT = Path(__file__).resolve().parent.parent


def silent(text):
    raise AssertionError(text)


def evaluate(folder, task="esr", **task_args):
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model=MODEL,
        model_roles={"grader": "sim-judge/noisy"},
        task_args=task_args,
        log_dir=str(folder),
        display="none",
    )
    assert log.status == "success", log.error
    return log.location.removeprefix("file://")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Main, no steering, ablation and detectors, through the real tasks.

    The judge has no verdict on the unsteered answers, which say nothing of a boost.
    """
    assert SimulatedJudge  # registers the judge
    folder = tmp_path_factory.mktemp("logs")
    labels = folder / "labels.csv"
    labels.write_text("index_in_sae,label\n" + "".join(f"{i},thing {i}\n" for i in range(1, 9)))
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        patch.setenv(CACHE_ENV, str(tmp_path_factory.mktemp("cache")))
        plan = {"latents": str(labels), "trials_per_latent": 6, "strength": 20}
        main = evaluate(folder, **plan)
        evaluate(folder, replay=main, steering=False)
        found = evaluate(folder, "detectors")
        evaluate(folder, "ablation", detectors=found, replay=main)
    return folder


@pytest.fixture(scope="module")
def evidence(logs):
    found = read_logs([logs], silent)
    conditions = conditions_of(found)
    return found, conditions, compare_with_main(conditions)


@pytest.fixture(scope="module")
def report(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report([logs], folder)
    return folder


class Page(HTMLParser):
    """Elements, addresses, visible text, and the text of marked attempts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.addresses, self.alts, self.attributes = [], [], [], []
        self.text, self.marked, self._open = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append(tag)
        self.attributes += given
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self.alts += [given.get("alt")] if tag == "img" else []
        self._open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if "mark" in self._open:
            self.marked[-1] += data


def page_of(folder):
    return Page((folder / "index.html").read_text("utf-8"))


def table_of(folder, name):
    return pd.read_csv(folder / "tables" / f"{name}.csv")


# The page


def test_page_stands_alone_and_every_figure_is_told_in_words(report):
    page = page_of(report)
    assert not {"script", "iframe", "object", "link", "form"} & set(page.elements)
    assert not [name for name in page.attributes if name.startswith("on")]
    inside = ("data:image/svg+xml;base64,", "#", "tables/")
    assert all(address.startswith(inside) for address in page.addresses)
    for address in page.addresses:
        if address.startswith("tables/"):
            assert (report / address).is_file()
    assert len(page.alts) >= 3 and all(alt and any(c.isdigit() for c in alt) for alt in page.alts)
    svg = [base64.b64decode(a.partition(",")[2]) for a in page.addresses if a.startswith("data:")]
    assert all(b"<svg" in picture and b"<script" not in picture for picture in svg)


def test_every_experiment_is_answered_or_named_with_its_command(report):
    text = page_of(report).text
    for experiment in EXPERIMENTS:
        assert experiment.title in text
        present = experiment.id in ("esr", "no_steering", "ablation", "detectors")
        assert (experiment.question in text) == present
        assert (f"inspect eval esr_eval/{experiment.task} --model esr/llama-8b" in text) != present


def test_same_logs_give_the_same_files(logs, report, tmp_path):
    write_report([logs], tmp_path / "again", note=silent)
    files = [path.relative_to(report) for path in sorted(report.rglob("*")) if path.is_file()]
    assert len(files) > 6
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (report / path).read_bytes(), path


def test_no_path_of_this_machine_is_in_the_report(logs, report):
    for path in report.rglob("*.*"):
        assert str(logs) not in path.read_text("utf-8")


# Numbers


def test_numbers_are_those_of_the_log(logs, report, evidence):
    table = table_of(report, "conditions")
    for condition in evidence[1]:
        header = read_eval_log(condition.log.path, header_only=True)
        rows = table[table["condition"] == condition.name].set_index("metric")
        assert set(rows["planned"]) == {48} and set(rows["completed"]) == {48}
        for score in header.results.scores:
            means = [m.value for name, m in score.metrics.items() if name.endswith("mean")]
            if score.name in rows.index:
                assert rows.loc[score.name, "value"] == pytest.approx(means[0])
                lower = [m.value for n, m in score.metrics.items() if n.endswith("lower")]
                assert rows.loc[score.name, "low"] == pytest.approx(lower[0])


def test_planted_restarts_are_there_and_gone_under_ablation(evidence, report):
    _, conditions, compared = evidence
    by_id = {one.experiment.id: one for one in conditions}
    main, ablated = by_id["esr"], by_id["ablation"]
    odd = (main.trials["seed"].astype(int) % 2 == 1).sum()
    assert main.measures["multi_attempt"].hits == odd > 10
    assert ablated.measures["multi_attempt"].hits == 0
    [one] = [c for c in compared if c.condition is ablated and c.metric == "multi_attempt"]
    first, second = (read_values(c.log.path, "multi_attempt") for c in (main, ablated))
    expected = compare_pairs(*shared_trials(first, second))
    assert one.rate == expected and one.pairs == 48
    assert one.rate.difference.value == pytest.approx(-odd / 48)
    assert one.p_value < 0.05 and one.holm >= one.p_value
    row = table_of(report, "paired").query("metric == 'multi_attempt' and difference < 0")
    assert row["p_holm"].iloc[0] == pytest.approx(one.holm)
    assert "ablated" in page_of(report).text


def test_holm_is_over_everything_against_one_main_run(evidence):
    compared = evidence[2]
    values = [one.p_value for one in compared if one.p_value is not None]
    smallest = min(compared, key=lambda one: math.inf if one.p_value is None else one.p_value)
    assert len({one.main.name for one in compared}) == 1
    assert smallest.holm == pytest.approx(min(1, len(values) * smallest.p_value))


def test_differences_of_scores_are_over_the_same_trials(evidence):
    main, compared = evidence[1][0], evidence[2]
    [one] = [
        c for c in compared if c.metric == "first_score" and c.condition.experiment.id == "ablation"
    ]
    other = one.condition.by_trial("first_score")
    changes = [other[key] - value for key, value in main.by_trial("first_score").items()]
    assert one.score.value == pytest.approx(np.mean(changes))
    assert one.score.low < one.score.value < one.score.high


def test_failed_and_unscored_trials_are_counted(tmp_path):
    judge = grader(lambda *_: "I will not judge this.")
    samples = [trial("Some text.", i, identifier=str(i)) for i in (1, 2)]
    run([*samples, trial(None, 3, identifier="3")], judge, tmp_path / "logs")
    write_report([tmp_path / "logs"], tmp_path / "report")
    text = page_of(tmp_path / "report").text
    assert "2 responses of 3 planned trials; 1 failed, 2 could not be scored" in text
    [log] = read_logs([tmp_path / "logs"], silent)
    [condition] = conditions_of([log])
    assert "multi_attempt" not in condition.measures
    assert condition.measures["unscored"].hits == 2 and condition.failed.sum() == 1


# Logs


def test_two_judges_of_a_log_are_two_conditions_and_agree_or_not(logs, tmp_path):
    main = read_logs([logs], silent)[0].path
    log = read_eval_log(main)
    log.eval.model_roles = {"grader": ModelConfig(model="sim-judge/mute")}
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        again = inspect_score(log, attempts(), action="append", display="none")
    write_eval_log(again, str(tmp_path / "twice.eval"))
    first, second = conditions_of(read_logs([tmp_path / "twice.eval"], silent))
    assert [first.judge, second.judge] == ["sim-judge/noisy", "sim-judge/mute"]
    assert first.name != second.name
    assert "first_score" not in second.measures and first.measures["first_score"].n == 48
    write_report([tmp_path / "twice.eval"], tmp_path / "report")
    text = page_of(tmp_path / "report").text
    assert "Agreement of judges" in text
    assert "no response was judged by two of 2 judges" in text


def test_second_view_stands_beside_the_first(tmp_path):
    def judge(messages, *_):
        if "attempts" in messages[0].text:
            return verdict(("alpha", "omega", 20))
        return json.dumps({"improvement": 8, "kind": "gradual"})

    samples = [trial("alpha text omega", i, identifier=str(i)) for i in range(1, 5)]
    log = run(samples, grader(judge), tmp_path, scorer=[attempts(), improvement()])
    [condition] = conditions_of(read_logs([tmp_path], silent))
    summaries = read_eval_log_sample_summaries(log.location)
    given = [one.scores["improvement"].value["improvement"] for one in summaries]
    assert condition.trials["holistic_improvement"].tolist() == given == [8, 8, 8, 8]
    assert condition.measures["holistic_gradual"].value == 1
    write_report([tmp_path], tmp_path / "report")
    assert "The second view" in page_of(tmp_path / "report").text
    table = table_of(tmp_path / "report", "second_view").set_index("metric")
    assert table.loc["improvement", "value"] == 8 and table.loc["improvement", "n"] == 4


def test_interrupted_run_is_left_out_once_it_was_finished(logs, tmp_path):
    path = read_logs([logs], silent)[0].path
    whole = read_eval_log(path)
    part = whole.model_copy(deep=True)
    part.status, part.samples = "error", part.samples[:5]
    part.eval.eval_id, part.eval.created = "earlier", "2020-01-01T00:00:00+00:00"
    write_eval_log(part, str(tmp_path / "part.eval"))
    [alone] = conditions_of(read_logs([tmp_path], silent))
    assert len(alone.trials) == 5 and alone.log.planned == 48
    write_eval_log(whole, str(tmp_path / "whole.eval"))
    told = []
    [kept] = read_logs([tmp_path], told.append)
    assert kept.header.status == "success" and told == [
        "1 log left out: retried as whole.eval: part.eval."
    ]


def test_activations_that_are_missing_are_told(logs, report, tmp_path):
    assert table_of(report, "detectors")["latent"].isin([11, 222, 3333, 44444]).sum() == 8
    [log] = [one for one in read_logs([logs], silent) if one.experiment.id == "detectors"]
    copied = tmp_path / "alone" / log.file
    copied.parent.mkdir()
    copied.write_bytes(Path(log.path).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_ENV, str(tmp_path / "nothing"))
        write_report([copied], tmp_path / "report")
    text = page_of(tmp_path / "report").text
    assert "are missing: copy them beside it" in text and str(tmp_path) not in text
    assert not (tmp_path / "report" / "tables" / "detectors.csv").exists()


def test_what_cannot_be_used_is_told_in_one_sentence(logs, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EsrError, match="There is no log in"):
        write_report([empty], tmp_path / "report")
    with pytest.raises(EsrError, match=r"There is no log .*none\.eval"):
        write_report([tmp_path / "none.eval"], tmp_path / "report")
    broken = empty / "2026-01-01T00-00-00-00-00_esr_x.eval"
    broken.write_text("no log")
    told = []
    with pytest.raises(EsrError, match="There is no log in"):
        read_logs([empty], told.append)
    assert "cannot be read" in told[0]
    main = read_logs([logs], silent)[0].path
    foreign = tmp_path / "site"
    foreign.mkdir()
    (foreign / "index.html").write_text("<p>mine</p>")
    with pytest.raises(EsrError, match="no report of esr-eval"):
        write_report([Path(main)], foreign)
    assert (foreign / "index.html").read_text() == "<p>mine</p>"
    with pytest.raises(EsrError, match="is a file"):
        write_report([Path(main)], broken)


def test_an_earlier_reports_tables_do_not_stay(logs, report, tmp_path):
    write_report([logs], tmp_path)
    (tmp_path / "tables" / "sweep.csv").write_text("old")
    write_report([logs], tmp_path)
    made = {path.name for path in (tmp_path / "tables").iterdir()}
    assert made == {path.name for path in (report / "tables").iterdir()}


# Published figures


def as_published(condition, *, judge=f"anthropic/{JUDGE_OF_RECORD}", runtime=None, **settings):
    """The condition as if that judge had judged it, on that runtime, with these settings."""
    header = condition.log.header.model_copy(deep=True)
    header.eval.metadata["runtime"] |= runtime or {}
    for name, value in settings.items():
        setattr(header.plan.config, name, value)
    return replace(condition, judge=judge, log=replace(condition.log, header=header))


def with_measure(condition, metric, *numbers):
    condition.__dict__["measures"] = {metric: Measured(*numbers)}
    return condition


FIGURE = Figure(experiment="esr", subject="llama-8b", metric="esr", value=0.038)


@pytest.mark.parametrize(
    ("low", "high", "figure", "place"),
    [
        (0.02, 0.05, {"value": 0.038}, "inside"),
        (0.038, 0.05, {"value": 0.038}, "inside"),
        (0.05, 0.09, {"value": 0.038}, "below"),
        (0.0, 0.03, {"value": 0.038}, "above"),
        (0.0, 0.03, {"value": None, "most": 0.01}, "inside"),
        (0.02, 0.03, {"value": None, "most": 0.01}, "below"),
        (0.0, 0.03, {"value": None, "least": 0.02, "most": 0.05}, "inside"),
        (0.0, 0.01, {"value": None, "least": 0.02, "most": 0.05}, "above"),
        (None, None, {"value": 0.038}, ""),
    ],
)
def test_verdict_says_where_the_published_figure_lies(evidence, low, high, figure, place):
    condition = with_measure(as_published(evidence[1][0]), "esr", 0.02, low, high, 100, 20)
    found = compare(FIGURE.model_copy(update=figure), condition)
    assert (found.place, found.reasons) == (place, ())
    assert found.text == (f"{place} our interval" if place else "ours has no interval")


@pytest.mark.parametrize(
    ("changes", "figure", "reason"),
    [
        ({"judge": "sim-judge/noisy"}, {}, "other judge"),
        ({"runtime": {"steering_layer": 12}}, {}, "other layer"),
        ({"runtime": {"feature_layer": 12}}, {}, "other layer"),
        ({"runtime": {"adapter": "lora"}}, {}, "adapter"),
        ({}, {"subject": "llama-70b"}, "other model"),
        ({"max_tokens": 40}, {}, "other length of answers"),
        ({"temperature": 1.0}, {}, "other temperature"),
        ({}, {"condition": "paper_26"}, "other condition"),
    ],
)
def test_what_was_run_otherwise_is_not_compared(evidence, changes, figure, reason):
    condition = as_published(evidence[1][0], **changes)
    found = compare(FIGURE.model_copy(update=figure), condition)
    assert found.reasons == (reason,) and found.place == ""
    assert found.text == f"not comparable: {reason}"


def test_figures_stand_beside_their_own_subject_or_the_papers_main_one(evidence):
    own = verdicts(as_published(evidence[1][0]))
    assert {one.figure.subject for one in own} == {"llama-8b"}
    stranger = evidence[1][0]
    header = stranger.log.header.model_copy(deep=True)
    header.eval.metadata["subject"] = "smollm2-135m"
    other = verdicts(replace(stranger, log=replace(stranger.log, header=header)))
    assert {one.figure.subject for one in other} == {"llama-70b"}
    assert all("other model" in one.reasons for one in other)


def test_published_figures_name_what_exists():
    ids = {one.id for one in EXPERIMENTS}
    for figure in published():
        assert figure.experiment in ids
        assert figure.subject is None or find_subject(figure.subject).steering_layer is not None
        low, high = figure.bounds
        assert low <= high
    [main] = [
        one
        for one in published()
        if (one.experiment, one.subject, one.metric) == ("esr", "llama-70b", "multi_attempt")
    ]
    assert main.value == 0.074


# Episodes


def test_episodes_with_several_attempts_come_first_and_are_marked_where_they_are(evidence, report):
    picks = episodes.choose(evidence[1])
    whys = [pick.why for pick in picks]
    kinds = list(dict.fromkeys(whys))
    # The unsteered answers of this judge are not scored, and so not shown.
    assert kinds == ["several attempts", "a typical drift"]
    assert whys == sorted(whys, key=kinds.index)
    assert whys.count("several attempts") > 10
    assert whys.count("a typical drift") >= episodes.LEAST_DRIFTS
    assert len({(pick.condition.name, pick.id) for pick in picks}) == len(picks)
    marked = page_of(report).marked
    assert marked[0].startswith("attempt 1, score") and "latent" in marked[0]
    assert marked[1].startswith("attempt 2, score 90") and "Wait, that's not right." in marked[1]


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202egnorw\u2066 \x1b[31m \ud800"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    bomb = HOSTILE + " text" * 200_000 + " e" + "\u0301" * 500
    samples = [
        trial(bomb, i, identifier=f"=cmd|{i}", label="=1+1 <b onclick=x>bold</b>\u202e" * 40)
        for i in range(1, 5)
    ]
    judge = grader(lambda *_: verdict(("<script>alert(1)", "gnorw", 3)))
    log = run(samples, judge, folder / "logs", metadata={"condition": "<i>main</i>\u202e"})
    assert len(log.samples[0].output.completion) > 1_000_000
    write_report([folder / "logs"], folder / "report")
    return folder / "report"


def test_hostile_responses_and_labels_do_no_harm(hostile):
    html = (hostile / "index.html").read_text("utf-8")
    page = Page(html)
    assert not {"script", "b", "i"} & set(page.elements)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(a.startswith(("data:image/svg+xml;base64,", "#", "tables/")) for a in page.addresses)
    assert not set(html) & set("\u202e\u2066\x1b\ud800")
    assert "[U+202E]gnorw" in page.text and "[U+001B]" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_long_responses_are_cut_and_say_so(hostile):
    html = (hostile / "index.html").read_text("utf-8")
    assert len(html) < 600_000
    text = page_of(hostile).text
    assert text.count("more characters") == 4 and "997," in text
    assert "[+497 marks]" in text


def test_tables_hold_no_formula(hostile):
    for path in (hostile / "tables").glob("*.csv"):
        for line in path.read_text("utf-8").splitlines():
            assert not line.startswith(("=", "+", "@")) and ",=" not in line
    assert table_of(hostile, "trials")["id"].str.startswith("'=cmd").all()


def test_invisible_characters_are_spelled_out():
    runs = shown("a\u200bb\nc\u0301")
    assert [(run.text, run.special) for run in runs] == [
        ("a", False),
        ("[U+200B]", True),
        ("b\nc\u0301", False),
    ]
    assert one_line("x" * 500, 20) == "x" * 19 + "…"


# Size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory from /proc")
@pytest.mark.heavy
def test_five_thousand_samples_take_under_a_minute_and_2_gb(logs, tmp_path):
    """A log of the main experiment's size, made of real samples."""
    log = read_eval_log(read_logs([logs], silent)[0].path)
    kinds = log.samples
    log.samples = []
    for sample in kinds:
        # Nothing reads them, and they would take most of the time that the log takes to write.
        sample.events = []
    for latent in range(500):
        for at in range(10):
            sample = kinds[(latent + at) % len(kinds)].model_copy(deep=False)
            sample.id, sample.uuid = f"{latent}-{at}", f"{latent}-{at}"
            sample.metadata = sample.metadata | {"latent": latent, "seed": 1000 * latent + at}
            log.samples.append(sample)
    log.eval.dataset.samples = len(log.samples)
    write_eval_log(log, str(tmp_path / "large.eval"))
    del log
    script = (
        "import sys, time; start = time.process_time()\n"
        "from pathlib import Path\nfrom esr_eval.report.page import write_report\n"
        "write_report([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "[used] = [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')]\n"
        "print(time.process_time() - start, int(used) / 2**20)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.eval"), str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    # Processor time: other jobs of the machine are not the report's fault.
    seconds, gigabytes = map(float, done.stdout.split())
    print(f"5,000 samples: {seconds:.1f} s, {gigabytes:.2f} GiB")
    assert seconds < 60 and gigabytes < 2
    assert "5,000 trials with an attempt" in page_of(tmp_path / "report").text


# The embedded subject


@pytest.mark.model
def test_sweep_and_traces_of_the_real_model(tmp_path):
    logs = tmp_path / "logs"
    main = embedded("esr", logs, n_latents=2, trials_per_latent=1, seed=4)
    embedded("boost_sweep", logs, levels=2, n_latents=2, trials_per_latent=1)
    embedded("activations", logs, source=main.location, which="all", detectors=[5, 77])
    write_report([logs], tmp_path / "report", note=silent)
    page = page_of(tmp_path / "report")
    assert sum("Activations over" in alt for alt in page.alts) == 2
    assert "1 log" not in page.text and "3 logs of 3 experiments on smollm2-135m" in page.text
    assert "2 steered answers and 0 unsteered answers read" in page.text
    means = table_of(tmp_path / "report", "activations")
    assert {"detectors", "boosted"} <= set(means["latents"].dropna())
    levels = table_of(tmp_path / "report", "sweep").query("metric == 'first_score'")
    assert levels["level"].tolist() == [-3.0, 3.0]
    [sweep] = [one for one in conditions_of(read_logs([logs], silent)) if "sweep" in one.name]
    for level, value in zip(levels["level"], levels["value"], strict=True):
        own = sweep.trials.loc[sweep.trials["level"] == level, "first_score"]
        assert value == pytest.approx(own.mean())
    assert (tmp_path / "logs" / "activations").is_dir()
