"""Tables from real logs of the main task, made with a simulated model and judge."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import score
from inspect_ai.log import list_eval_logs, read_eval_log, write_eval_log
from inspect_ai.model import ModelConfig
from inspect_ai.scorer import SampleScore, Score, ci
from rich.console import Console
from simulation import LABELS, MODEL, SUBJECT, install

from esr_eval._util.output import write_frame
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, read_all_scored, read_scored
from esr_eval.logs.stored import read_logs
from esr_eval.report.summary import (
    ROWS,
    metric_table,
    pair_table,
    paired_difference,
    short_names,
    summary_frame,
)
from esr_eval.scorers.attempts import MEANS, RATES, attempts
from esr_eval.stats.means import clustered_mean
from esr_eval.tasks.esr import esr


def evaluate(folder: Path, **args: Any) -> Path:
    labels = folder / "labels.csv"
    labels.write_text(LABELS)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        (log,) = inspect_eval(
            esr,
            model=MODEL,
            model_roles={"grader": "sim-judge/noisy"},
            task_args={"latents": str(labels), "trials_per_latent": 6, "strength": 20, **args},
            log_dir=str(folder / "logs"),
            display="none",
        )
    assert log.status == "success", log.error
    return Path(log.location.removeprefix("file://"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("summary")
    return [evaluate(folder), evaluate(folder, steering=False)]


@pytest.fixture(scope="module")
def runs(logs: list[Path]) -> list[Condition]:
    return [run for log in logs for run in read_scored(log)]


def printed(table: Any) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_log_tells_what_ran_and_who_judged(runs: list[Condition]) -> None:
    steered, unsteered = runs
    assert (steered.subject, steered.steering) == (SUBJECT, "steered")
    assert unsteered.steering == "unsteered"
    assert {run.judge for run in runs} == {"sim-judge/noisy"}
    results = [run.log.header.results for run in runs]
    assert {(r.total_samples, r.completed_samples) for r in results if r} == {(12, 12)}
    assert {(run.log.backend, run.completed, run.log.status) for run in runs} == {
        ("local", 12, "success")
    }


def test_estimates_are_those_of_the_log(logs: list[Path], runs: list[Condition]) -> None:
    log = read_eval_log(str(logs[0]))
    assert log.results is not None and log.samples is not None
    [shown] = log.results.scores
    found = runs[0].measures["multi_attempt"]
    assert found.value == shown.metrics["multi_attempt"].value
    assert found.low is not None and found.high is not None
    assert found.low <= found.value <= found.high
    values = [sample.scores["attempts"].value for sample in log.samples if sample.scores]
    multi = [value["multi_attempt"] for value in values if isinstance(value, dict)]
    assert found.value == pytest.approx(np.mean(multi))
    assert 0 < found.value < 1


def test_what_no_trial_defines_is_a_dash_and_not_zero(runs: list[Condition]) -> None:
    assert "improved" in runs[0].measures
    assert "improved" not in runs[1].measures
    line = next(row for row in printed(metric_table(runs)).splitlines() if "improvement" in row)
    assert line.replace("│", " ").split()[-1] == "-"


def test_table_has_a_column_for_each_log_and_names_the_judge(runs: list[Condition]) -> None:
    text = printed(metric_table(runs))
    assert "llama-8b steered" in text and "llama-8b unsteered" in text
    assert "sim-judge/noisy" in text
    for row in ROWS:
        assert row.title in text


def test_every_row_is_a_metric_of_the_scorer() -> None:
    for row in ROWS:
        assert row.key in (RATES if row.is_rate else MEANS)


def test_paired_difference_is_over_the_same_trials(logs: list[Path], runs: list[Condition]) -> None:
    pair = paired_difference(runs[1], runs[0])
    assert pair is not None
    assert (pair.n, pair.clusters) == (12, 2)
    scores = []
    for log in logs:
        samples = read_eval_log(str(log)).samples
        assert samples is not None
        scores.append(
            {
                (s.metadata["latent"], s.metadata["topic"]): s.scores["attempts"].value
                for s in samples
                if s.scores
            }
        )
    by_hand = [scores[0][k]["first_score"] - scores[1][k]["first_score"] for k in scores[0]]  # type: ignore[call-overload,index]
    assert pair.value == pytest.approx(np.mean(by_hand))
    assert pair.value < -20
    table = pair_table(runs)
    assert table is not None and "steered minus llama-8b unsteered" in printed(table)


def test_runs_without_shared_trials_do_not_pair(tmp_path: Path, runs: list[Condition]) -> None:
    (other,) = read_scored(evaluate(tmp_path, seed=1))
    assert paired_difference(runs[0], other) is None
    assert pair_table([runs[0], other]) is None
    assert short_names([runs[0], other]) == [
        "llama-8b steered, seed 0",
        "llama-8b steered, seed 1",
    ]


def test_log_scored_by_a_second_judge_is_two_runs(logs: list[Path], tmp_path: Path) -> None:
    log = read_eval_log(str(logs[0]))
    log.eval.model_roles = {"grader": ModelConfig(model="sim-judge/mute")}
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        again = score(log, attempts(), action="append", display="none")
    write_eval_log(again, str(tmp_path / "twice.eval"))
    first, second = read_scored(tmp_path / "twice.eval")
    assert (first.judge, second.judge) == ("sim-judge/noisy", "sim-judge/mute")
    assert first.measures["unscored"].value == 0 and second.measures["unscored"].value == 1
    assert len(first.by_trial("first_score")) == 12 and not second.by_trial("first_score")
    assert "first_score" not in second.measures


def test_interval_is_the_clustered_one_of_inspect() -> None:
    rng = np.random.default_rng(3)
    clusters = [int(c) for c in rng.integers(0, 6, 60)]
    values = [float(v) for v in rng.normal(0, 10, 60) + np.asarray(clusters) * 3]
    samples = [
        SampleScore(score=Score(value=value), sample_metadata={"latent": cluster})
        for value, cluster in zip(values, clusters, strict=True)
    ]
    expected = ci(cluster="latent")(samples)  # type: ignore[call-arg,arg-type]
    mean, low, high = clustered_mean(values, clusters)
    assert mean == pytest.approx(np.mean(values))
    assert low == pytest.approx(expected["lower"], rel=1e-6)  # type: ignore[index,call-overload]
    assert high == pytest.approx(expected["upper"], rel=1e-6)  # type: ignore[index,call-overload]


def test_one_latent_has_no_interval() -> None:
    assert clustered_mean([1.0, 3.0], [7, 7]) == (2.0, None, None)


def test_csv_holds_the_same_numbers(tmp_path: Path, runs: list[Condition]) -> None:
    write_frame(tmp_path / "numbers.csv", summary_frame(runs))
    with (tmp_path / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Besides, each run's false alarms of judge and detector, and the steered one's estimate.
    assert len(rows) == 2 * len(ROWS) + 2 * 2 + 1 + 1
    first = next(row for row in rows if row["metric"] == "first_score")
    assert float(first["value"]) == runs[0].measures["first_score"].value
    assert first["judge"] == "sim-judge/noisy"
    assert rows[-1]["metric"] == "first_score_difference"
    assert math.isfinite(float(rows[-1]["value"])) and rows[-1]["total"] == "12"


def test_folder_is_read_in_order_and_other_logs_are_left_out(
    tmp_path: Path, logs: list[Path]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for log in logs:
        (folder / log.name).write_bytes(log.read_bytes())
    other = read_eval_log(str(logs[0]))
    assert other.results is not None
    other.results.scores = []
    write_eval_log(
        other, str(folder / "2026-01-01T00-00-00-00-00_other_AAAAAAAAAAAAAAAAAAAAAA.eval")
    )
    notes: list[str] = []
    found = read_all_scored([folder], notes.append)
    assert [Path(run.log.path).name for run in found] == [log.name for log in logs]
    assert len(notes) == 1 and "no scores of esr_eval/attempts" in notes[0]


def test_folders_within_folders_are_read_as_inspect_lists_them(
    tmp_path: Path, logs: list[Path]
) -> None:
    for log, place in zip(logs, ("a", "b/c"), strict=True):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / log.name).write_bytes(log.read_bytes())
    notes: list[str] = []
    assert len(read_all_scored([tmp_path], notes.append)) == len(list_eval_logs(str(tmp_path))) == 2
    assert len(read_logs([tmp_path], notes.append)) == 2
    assert not notes
    (tmp_path / "empty" / "within").mkdir(parents=True)
    for read in (read_all_scored, read_logs):
        with pytest.raises(EsrError, match="sub-folders included: name"):
            read([tmp_path / "empty"], notes.append)


def test_what_is_no_log_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EsrError, match="no log"):
        read_scored(tmp_path / "none.eval")
    (tmp_path / "broken.eval").write_text("not a log")
    with pytest.raises(EsrError, match="cannot be read"):
        read_scored(tmp_path / "broken.eval")
    with pytest.raises(EsrError, match="no log with scores"):
        read_all_scored([tmp_path / "."], lambda note: None)
