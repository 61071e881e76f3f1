"""Stored answers read token by token: the task, its arrays, its tables and its figure."""

import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log, write_eval_log
from test_region_statistics import trace as made_trace
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.episodes.reading import read_episodes
from esr_eval.episodes.regions import region_statistics
from esr_eval.episodes.traces import Region, Trace, read_traces
from esr_eval.errors import EsrError
from esr_eval.report.plots import trace_figure
from esr_eval.spec import Steering
from esr_eval.subjects import find_subject

RUNTIME = find_subject("smollm2-135m").runtime()
DETECTORS = [5, 77, 1200]


def run(task, log_dir, **task_args):
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args=task_args,
        max_tokens=24,
        log_dir=str(log_dir),
        display="none",
    )
    return log


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    args = {"n_latents": 2, "trials_per_latent": 2, "seed": 4}
    steered = run("esr", folder, **args)
    unsteered = run("esr", folder, **args, steering=False)
    read = run(
        "activations",
        folder,
        source=steered.location,
        baseline=unsteered.location,
        which="all",
        detectors=DETECTORS,
        backtracking="9,10",
    )
    return steered, unsteered, read


# --- the task ---


@pytest.mark.model
def test_every_answer_is_read_token_by_token(logs):
    steered, unsteered, read = logs
    assert read.status == "success"
    log = read_traces(read.location)
    assert (log.errored, log.missing, log.layer, log.which) == (0, 0, 14, "all")
    assert log.sets["detectors"].latents == tuple(DETECTORS)
    before = {sample.id: sample for sample in steered.samples}
    before |= {f"{sample.id}-unsteered": sample for sample in unsteered.samples}
    assert {trace.sample_id for trace in log.traces} == set(before)
    for trace in log.traces:
        assert trace.response == before[trace.sample_id].output.completion
        tokens = len(trace.offsets)
        shapes = {name: values.shape for name, values in trace.activations.items()}
        assert shapes == {
            "detectors": (3, tokens),
            "backtracking": (2, tokens),
            "boosted": (1, tokens),
        }
        # The tokens' characters lie in order and leave nothing of the answer out.
        covered = "".join(trace.response[a:b] for a, b in trace.offsets.tolist())
        assert "".join(covered.split()) == "".join(trace.response.split())
        assert trace.regions is not None
        assert len(trace.kinds) == tokens and (trace.kinds != "").all()


@pytest.mark.model
def test_the_boost_is_on_while_steered_answers_are_read(logs):
    _, _, read = logs
    samples = {sample.id: sample for sample in read.samples}
    log = read_traces(read.location)
    for trace in log.traces:
        sample = samples[trace.sample_id]
        spec = Steering.model_validate(sample.output.metadata["steering"])
        tokens = sample.store["activation_means"]["tokens"]
        if trace.steered:
            [boost] = spec.edits
            assert (boost.latent, boost.strength) == (trace.trial.latent, trace.trial.strength)
            assert sample.output.metadata["edited_positions"] > tokens
        else:
            assert spec.edits == () and sample.output.metadata["edited_positions"] == 0
    lifted = {trace.steered: [] for trace in log.traces}
    for trace in log.traces:
        lifted[trace.steered].append(trace.activations["boosted"].mean())
    assert min(lifted[True]) > max(lifted[False])
    strength = min(trace.trial.strength for trace in log.traces if trace.steered)
    assert min(lifted[True]) > 0.5 * strength


@pytest.mark.model
def test_arrays_stay_out_of_the_log_and_numbers_are_in_it(logs):
    _, _, read = logs
    for sample in read.samples:
        ref = sample.store["activations"]
        assert ref["path"].startswith("activations/")
        value = sample.scores["answer_activity"].value
        assert value["tokens"] == ref["shapes"]["offsets"][0]
        assert value["detectors"] == pytest.approx(
            next(
                trace.activations["detectors"].mean()
                for trace in read_traces(read.location).traces
                if trace.sample_id == sample.id
            )
        )
        # Nothing was generated, so no model but the judge was asked.
        asked = {event.model for event in sample.events if event.event == "model"}
        assert not [model for model in asked if model.startswith("esr/")]
    means = {
        name.removeprefix("boosted condition "): metric.value
        for score in read.results.scores
        for name, metric in score.metrics.items()
        if name.startswith("boosted ")
    }
    assert set(means) == {"steered", "unsteered"} and means["steered"] > means["unsteered"]
    assert read.eval.metadata["condition"] == "4 steered answers, 4 unsteered"
    assert set(read.eval.metadata["replay"]) == {"source", "baseline"}
    [step] = read.plan.steps
    assert step.solver == "esr_eval/read_answer"
    assert step.params == {"sets": {"detectors": DETECTORS, "backtracking": [9, 10]}, "layer": 14}


@pytest.mark.model
def test_reading_again_gives_the_same_numbers(logs, tmp_path):
    steered, _, read = logs
    again = run(
        "activations",
        tmp_path,
        source=steered.location,
        which="auto",
        episodes=2,
        detectors=DETECTORS,
    )
    first = {trace.sample_id: trace for trace in read_traces(read.location).traces}
    traces = read_traces(again.location).traces
    assert len(traces) == 2
    for trace in traces:
        same = first[trace.sample_id].activations["detectors"]
        np.testing.assert_allclose(trace.activations["detectors"], same, rtol=1e-3, atol=1e-3)


@pytest.mark.model
def test_epochs_read_an_answer_once_more_but_count_it_once(logs, tmp_path):
    steered, _, _ = logs
    [log] = inspect_eval(
        "esr_eval/activations",
        model="esr/smollm2-135m",
        model_args={"device": "cpu"},
        task_args={"source": steered.location, "which": "all", "episodes": 2},
        epochs=2,
        log_dir=str(tmp_path),
        display="none",
    )
    assert len(log.samples) == 4
    found = read_traces(log.location)
    assert (len(found.traces), found.errored, found.missing) == (2, 0, 0)
    assert {name for trace in found.traces for name in trace.activations} == {"boosted"}


@pytest.mark.model
def test_samples_that_failed_are_counted(logs, tmp_path):
    _, _, read = logs
    log = read_eval_log(read.location)
    log.samples[0].store.pop("activations")
    del log.samples[1]
    path = tmp_path / "failed.eval"
    write_eval_log(log, str(path))
    folder = Path(read.location.removeprefix("file://")).parent
    shutil.copytree(folder / "activations", tmp_path / "activations")
    found = read_traces(str(path))
    assert (len(found.traces), found.errored, found.missing) == (6, 2, 0)


@pytest.mark.model
def test_without_self_correction_the_way_out_is_told(logs, tmp_path):
    steered, unsteered, _ = logs
    with pytest.raises(EsrError, match=r"None of the 4 responses .* which=all"):
        run("activations", tmp_path, source=steered.location)
    with pytest.raises(EsrError, match="not steered"):
        run("activations", tmp_path, source=unsteered.location, which="all")
    with pytest.raises(EsrError, match="not unsteered"):
        run(
            "activations", tmp_path, source=steered.location, baseline=steered.location, which="all"
        )
    with pytest.raises(EsrError, match="which=some"):
        run("activations", tmp_path, source=steered.location, which="some")
    with pytest.raises(EsrError, match="out of range"):
        run("activations", tmp_path, source=steered.location, which="all", detectors="99999")
    with pytest.raises(EsrError, match="llama-70b"):
        run("activations", tmp_path, source=steered.location, which="all", detectors="paper_26")


# --- choosing episodes ---


def in_order(log):
    return sorted(log.samples, key=lambda one: log.eval.dataset.sample_ids.index(one.id))


@pytest.fixture
def rewritten(logs, tmp_path):
    """The steered log with responses and scores of one's own."""

    def write(*changes, metadata=None):
        log = read_eval_log(logs[0].location)
        for sample, (response, multi) in zip(in_order(log), changes, strict=False):
            sample.output.completion = response
            sample.scores["attempts"].value["multi_attempt"] = multi
        log.eval.metadata |= metadata or {}
        path = str(tmp_path / "rewritten.eval")
        write_eval_log(log, path)
        return path

    return write


@pytest.mark.model
def test_judge_or_phrases_make_an_episode(rewritten):
    restart = "The sea is wide. Wait, that's not right. Let me start over. Add the numerators."
    path = rewritten(("Fish.", 0.0), ("Fish. Fractions.", 1.0), (restart, 0.0), (restart, math.nan))
    found = read_episodes(path, RUNTIME, "steered", "multi_attempt")
    assert (found.responses, found.multi_attempt, found.which) == (4, 3, "multi_attempt")
    assert [one.response for one in found.chosen] == ["Fish. Fractions.", restart, restart]
    assert [one.multi_attempt for one in read_episodes(path, RUNTIME, "steered").chosen] == [
        False,
        True,
        True,
        True,
    ]
    assert len(read_episodes(path, RUNTIME, "steered", "auto").chosen) == 3
    two = read_episodes(path, RUNTIME, "steered", "multi_attempt", count=2, seed=1)
    assert two.chosen == read_episodes(path, RUNTIME, "steered", "auto", count=2, seed=1).chosen
    draws = {
        tuple(one.id for one in read_episodes(path, RUNTIME, "steered", "all", 2, seed).chosen)
        for seed in range(12)
    }
    assert len(draws) > 2
    with pytest.raises(EsrError, match="episodes=0"):
        read_episodes(path, RUNTIME, "steered", count=0)


@pytest.mark.model
def test_answers_without_a_restart_are_read_beside_those_with_one(rewritten, logs, tmp_path):
    drift = "The river flows past the old mill and the boats drift with the tide to the sea."
    restart = f"{drift} Wait, that's not right. Let me start over. Add the numerators."
    samples = in_order(logs[0])
    latents = [sample.metadata["latent"] for sample in samples]
    assert latents[0] == latents[1] != latents[2] == latents[3]
    # One restart of each latent, and one answer of each without.
    path = rewritten((restart, 0.0), (drift, 0.0), (drift, 0.0), (restart, 0.0))
    found = read_episodes(path, RUNTIME, "steered", "auto", controls=True)
    assert [one.id for one in found.chosen] == [samples[0].id, samples[3].id]
    assert [one.id for one in found.controls] == [samples[1].id, samples[2].id]
    assert found.matched == 2
    # Two restarts of one latent: the other's answers stand in for what it lacks.
    path = rewritten((restart, 0.0), (restart, 0.0), (drift, 0.0), (drift, 0.0))
    found = read_episodes(path, RUNTIME, "steered", "multi_attempt", controls=True)
    assert len(found.controls) == 2 and found.matched == 0
    few = read_episodes(path, RUNTIME, "steered", "multi_attempt", 1, controls=True)
    assert len(few.chosen) == len(few.controls) == 1
    # Without a restart there is nothing to stand beside.
    none = rewritten(*[(drift, 0.0)] * 4)
    assert read_episodes(none, RUNTIME, "steered", "auto", controls=True).controls == []

    path = rewritten((restart, 0.0), (drift, 0.0), (drift, 0.0), (restart, 0.0))
    log = run(
        "activations",
        tmp_path / "read",
        source=path,
        baseline=logs[1].location,
        detectors=DETECTORS,
        controls=True,
    )
    about = log.eval.metadata
    assert about["condition"] == (
        "2 multi-attempt answers, 2 unsteered, 2 steered without a restart"
    )
    assert (about["controls"], about["controls_matched"]) == (2, 2)
    read = read_traces(log.location)
    kinds = {trace.sample_id: (trace.steered, trace.control) for trace in read.traces}
    assert sorted(kinds.values()) == [(False, False)] * 2 + [(True, False)] * 2 + [(True, True)] * 2
    assert kinds[samples[1].id] == (True, True)
    # The boost is on while they are read.
    by_id = {sample.id: sample for sample in log.samples}
    assert by_id[samples[1].id].output.metadata["edited_positions"] > 0
    done = CliRunner().invoke(app, ["activations", log.location], env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.output
    assert "off-topic, answers without a restart" in done.output
    assert "2 steered answers without a restart beside them, 2 of the same latent" in done.output


@pytest.mark.model
def test_a_self_correcting_answer_is_split_into_its_regions(rewritten, tmp_path):
    drift = "The river flows past the old mill 🌊 and the boats drift with the tide to the sea."
    restart = "Wait, that's not right. Let me start over."

    def answer(topic):
        back = f"Here is how to {topic}: to {topic}, follow these steps one by one."
        return f"{drift} {restart} {back}"

    topics = [sample.metadata["topic"] for sample in in_order(read_eval_log(rewritten()))]
    path = rewritten(*[(answer(topic), 0.0) for topic in topics[:2]])
    log = run("activations", tmp_path, source=path, detectors=DETECTORS)
    assert log.eval.metadata["multi_attempt"] == 2 and log.eval.metadata["responses"] == 4
    traces = read_traces(log.location).traces
    assert len(traces) == 2
    for trace in traces:
        kinds = dict.fromkeys(trace.kinds.tolist())
        assert list(kinds) == ["off_topic", "correction", "on_topic"]
        [wait] = [
            i for i, (a, b) in enumerate(trace.offsets.tolist()) if "Wait" in trace.response[a:b]
        ]
        assert trace.kinds[wait] == "correction" and trace.kinds[wait - 1] == "off_topic"
        # The boost acts in all three regions alike; what is read there is not one number.
        boosted = [trace.activations["boosted"][0, trace.kinds == kind].mean() for kind in kinds]
        assert min(boosted) > 0 and len(set(boosted)) == 3
    statistics = region_statistics(traces)
    paired = [one for one in statistics.contrasts if one.paired and one.latents == "detectors"]
    assert [one.contrast.n_first for one in paired] == [2, 2]


@pytest.mark.model
def test_another_models_answers_are_refused(rewritten):
    other = RUNTIME.model_copy(update={"adapter": "tuned"})
    path = rewritten(metadata={"runtime": other.model_dump(mode="json", exclude_none=True)})
    with pytest.raises(EsrError, match="adapter tuned instead of None"):
        read_episodes(path, RUNTIME, "steered")


# --- reading and showing ---


@pytest.mark.model
def test_the_command_prints_every_set_and_writes_the_numbers(logs, tmp_path):
    _, _, read = logs
    csv = tmp_path / "regions.csv"
    done = CliRunner().invoke(
        app, ["activations", read.location, "--csv", str(csv)], env={"COLUMNS": "250"}
    )
    assert done.exit_code == 0, done.output
    for said in ("detectors", "boosted latent", "unsteered answers", "4 steered and 4 unsteered"):
        assert said in done.output
    frame = pd.read_csv(csv)
    assert set(frame["row"]) == {"mean", "contrast", "latent"}
    assert sorted(frame[frame.row == "latent"].latent.dropna()) == [5, 9, 10, 77, 1200]
    boosted = frame[(frame.row == "mean") & (frame.latents == "boosted")].set_index("region")
    values = [
        trace.activations["boosted"].mean()
        for trace in read_traces(read.location).traces
        if not trace.steered
    ]
    assert boosted.loc["unsteered", "mean"] == pytest.approx(np.mean(values))
    assert boosted.loc["unsteered", "episodes"] == 4


@pytest.mark.model
def test_missing_arrays_and_other_logs_are_told(logs, tmp_path):
    steered, _, read = logs
    with pytest.raises(EsrError, match="no log of esr_eval/activations"):
        read_traces(steered.location)
    alone = tmp_path / "alone.eval"
    write_eval_log(read_eval_log(read.location), str(alone))
    with pytest.raises(EsrError, match="activations/ beside it"):
        read_traces(str(alone))
    with pytest.raises(EsrError, match="There is no log"):
        read_traces(str(tmp_path / "none.eval"))


@pytest.mark.model
def test_a_verdict_that_cannot_be_used_leaves_the_activations(logs, tmp_path):
    _, _, read = logs
    log = read_eval_log(read.location)
    log.samples[0].scores["regions"].metadata |= {"regions": [], "unscored_because": "refused"}
    path = tmp_path / "unjudged.eval"
    write_eval_log(log, str(path))
    folder = Path(read.location.removeprefix("file://")).parent
    shutil.copytree(folder / "activations", tmp_path / "activations")
    traces = {trace.sample_id: trace for trace in read_traces(str(path)).traces}
    unjudged = traces[log.samples[0].id]
    assert unjudged.regions is None and (unjudged.kinds == "").all()
    assert sum(trace.regions is None for trace in traces.values()) == 1


# --- the figure ---


def drawn(trace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = trace_figure(trace)
        figure.canvas.draw()
    return figure


def test_the_figure_shades_regions_with_hatches_and_draws_each_set():
    values = np.arange(40.0).reshape(2, 20)
    figure = drawn(made_trace(values, boosted=np.ones((1, 20), dtype=np.float32)))
    top, bottom = figure.axes
    [line] = top.get_lines()
    np.testing.assert_allclose(line.get_ydata(), values.mean(0))
    spans = [(p.get_x(), p.get_width(), p.get_hatch()) for p in top.patches]
    assert [(x, width) for x, width, _ in spans] == [(-0.5, 8), (7.5, 4), (11.5, 8)]
    assert len({hatch for *_, hatch in spans}) == 3
    assert top.get_lines()[0].get_linestyle() != bottom.get_lines()[0].get_linestyle()
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "off-topic",
        "correction",
        "on-topic, after the drift",
    ]
    ticks = [label.get_text() for label in bottom.get_xticklabels()]
    assert ticks == list("a" * 8 + "b" * 4 + "c" * 8)


def test_hostile_tokens_are_drawn_as_text():
    pieces = ["$\\frac{", "<b>", "\u202e", "火", "🔥", "\x00", "$x^", " wait"]
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    offsets = np.stack([ends - [len(piece) for piece in pieces], ends], axis=1)
    base = made_trace(np.ones((1, 20)))
    arrays = {"detectors": np.ones((1, len(pieces)), dtype=np.float32)}
    trial = base.trial.model_copy(update={"label": "$\\undefined{ <script>", "topic": "x" * 500})
    trace = Trace("1", trial, text, arrays, offsets, [Region("off_topic", 0, len(text))], True)
    figure = drawn(trace)
    assert "<" not in "".join(label.get_text() for label in figure.axes[0].get_xticklabels())


def test_a_long_answer_writes_out_some_of_its_tokens():
    base = made_trace(np.ones((1, 20)))
    count = 512
    offsets = np.array([(i, i + 1) for i in range(count)])
    arrays = {"detectors": np.random.default_rng(1).random((26, count)).astype(np.float32)}
    trace = Trace("1", base.trial, "w" * count, arrays, offsets, None, False)
    figure = drawn(trace)
    assert len(figure.axes[0].get_xticklabels()) <= 48
    assert not figure.legends
