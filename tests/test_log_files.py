"""Files that are no logs, told the same way wherever a log is read."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from inspect_ai import Task, eval_set, task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalError, list_eval_logs, read_eval_log, write_eval_log
from inspect_ai.solver import solver
from scoring import grader, output, run, trial, verdict
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.detectors.discovery import read_discovery
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import (
    conditions_of,
    read_all_scored,
    read_condition,
    read_scored,
    read_values,
)
from esr_eval.logs.reading import planned_of, read_each, reading
from esr_eval.logs.replay import read_judged, read_responses, replay_log
from esr_eval.logs.stored import read_logs, read_stored
from esr_eval.paper.run import finished
from esr_eval.report.agreement import agreement_of
from esr_eval.report.page import write_report
from esr_eval.scorers.attempts import attempts, parse_request

READERS = [
    agreement_of, read_discovery, read_condition, read_stored, read_scored, read_values,
    read_judged, read_responses, replay_log,
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["none.eval", "none.json", "none"])
def test_a_log_that_is_not_there(reader, name, tmp_path):
    with pytest.raises(EsrError, match=rf"^There is no log {re.escape(str(tmp_path / name))}\.$"):
        reader(str(tmp_path / name))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["", "no log\nat all", '{"version": 2}'])
@pytest.mark.parametrize("name", ["broken.eval", "broken.json", "broken.txt"])
def test_a_file_that_is_no_log(reader, text, name, tmp_path):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    sentence = rf"^{re.escape(str(path))} cannot be read as an Inspect log \([^\n()]+\)\.$"
    with pytest.raises(EsrError, match=sentence):
        reader(str(path))


def test_an_error_of_ours_passes_and_one_without_words_is_named(tmp_path):
    path = tmp_path / "there.eval"
    path.write_text("x", "utf-8")
    with pytest.raises(EsrError, match=r"^ours$"), reading(path):
        raise EsrError("ours")
    with pytest.raises(EsrError, match=r"\(EOFError\)\.$"), reading(path):
        raise EOFError
    nowhere = "memory://none.eval"
    with (
        pytest.raises(EsrError, match=r"^There is no log memory://none\.eval\.$"),
        reading(nowhere),
    ):
        read_eval_log(nowhere)


def test_what_was_planned_is_what_the_limit_left(tmp_path):
    task = Task(dataset=[Sample(id=str(at), input="?") for at in range(5)])
    for limit, planned in ((2, 6), (None, 15)):
        (log,) = inspect_eval(
            task,
            model="mockllm/model",
            limit=limit,
            epochs=3,
            log_dir=str(tmp_path),
            display="none",
        )
        assert planned_of(log) == planned


class Power:
    """Off, the second trial fails."""

    on = True


@solver
def answer():
    async def solve(state, generate):
        if not Power.on and state.metadata["latent"] == 2:
            raise RuntimeError("the power went off")
        state.output = output("alpha text omega")
        state.messages.append(state.output.message)
        return state

    return solve


@task
def small_esr():
    return Task(
        dataset=[trial("x", latent, identifier=str(latent)) for latent in (1, 2, 3)],
        solver=answer(),
        scorer=attempts(),
        metadata={"experiment_id": "main", "subject": "mock"},
    )


def tries(folder, *powers):
    """One run of three trials, tried again as often as there are powers: real eval sets."""
    judge = grader(lambda *_: verdict(("alpha", "omega", 40)))
    for on in powers:
        Power.on = on
        eval_set(
            small_esr(),
            model="mockllm/model",
            model_roles={"grader": judge},
            log_dir=str(folder),
            retry_attempts=0,
            retry_immediate=False,
            retry_cleanup=False,
            display="none",
        )
    Power.on = True
    return sorted(folder.glob("*.eval"))


def changed(log, target, **spec):
    """A log written again with another header."""
    found = read_eval_log(str(log))
    found.eval = found.eval.model_copy(update=spec)
    write_eval_log(found, str(target))
    return target


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that failed, and its retry."""
    return tries(tmp_path_factory.mktemp("interrupted"), False, True)


def each_way(*paths):
    """Trials that each reader of several logs counts, and what it says it left out."""
    told = []
    runs = read_all_scored([Path(path) for path in paths], told.append)
    yield sum(run.completed for run in runs), told
    told = []
    stored = read_logs([Path(path) for path in paths], told.append)
    yield sum(len(one.trials) for one in conditions_of(stored)), told
    found = read_judged(",".join(map(str, paths)))
    yield len(found.responses), found.notes
    told = []
    yield sum(map(len, read_each(paths, read_values, told.append))), told


def test_a_retried_run_counts_once_whatever_became_of_the_first_try(interrupted, tmp_path):
    first, last = interrupted
    assert read_eval_log(str(first), header_only=True).status == "error"
    folder = tmp_path / "both"
    folder.mkdir()
    for log in interrupted:
        shutil.copy(log, folder)
    for paths in ([folder], [first, last], [last, first], [first, folder]):
        for count, told in each_way(*paths):
            assert count == 3
            assert [line for line in told if "left out: retried as" in line], told
    for count, told in each_way(last):
        assert count == 3 and not told


def test_of_two_whole_tries_the_later_counts_and_a_poorer_later_one_does_not(interrupted, tmp_path):
    _, whole = interrupted
    again = {"eval_id": "again", "created": "2040-01-01T00:00:00+00:00"}
    later = changed(whole, tmp_path / "later.eval", **again)
    [run] = read_all_scored([whole, later], lambda text: None)
    assert run.log.path == str(later)
    poorer = read_eval_log(str(later))
    poorer.samples[0].error = EvalError(message="x", traceback="", traceback_ansi="")
    write_eval_log(poorer, str(later))
    [run] = read_all_scored([later, whole], lambda text: None)
    assert run.log.path == str(whole)


def test_a_later_try_without_scores_does_not_hide_the_one_that_has_them(interrupted, tmp_path):
    _, whole = interrupted
    log = read_eval_log(str(whole))
    log.eval.eval_id, log.eval.created = "again", "2040-01-01T00:00:00+00:00"
    log.results.scores = []
    write_eval_log(log, str(tmp_path / "unscored.eval"))
    told = []
    [run] = read_all_scored([whole, tmp_path / "unscored.eval"], told.append)
    assert run.log.path == str(whole) and "no scores of esr_eval/attempts" in told[0]


def test_a_copy_counts_once_in_whatever_folder_and_format(interrupted, tmp_path):
    _, whole = interrupted
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(whole, folder)
    converted = changed(whole, tmp_path / "2026-01-01T00-00-00-00-00_esr_x.json")
    for count, told in each_way(*folders, converted):
        assert count == 3 and sum("is a copy of" in line for line in told) == 2


def test_a_log_that_another_judge_scored_again_is_no_copy(interrupted, tmp_path):
    _, whole = interrupted
    log = read_eval_log(str(whole))
    for one in log.results.scores:
        one.metrics = {name: m.model_copy(update={"value": 0.5}) for name, m in one.metrics.items()}
    write_eval_log(log, str(tmp_path / "rescored.eval"))
    assert len(read_all_scored([whole, tmp_path / "rescored.eval"], lambda text: None)) == 2


def test_two_honest_runs_of_one_task_both_count(tmp_path):
    tries(tmp_path / "a", True)
    tries(tmp_path / "b", True)
    for count, told in each_way(tmp_path / "a", tmp_path / "b"):
        assert count == 6 and not told


@pytest.fixture(scope="module")
def littered(interrupted, tmp_path_factory):
    """A folder with one good log among all that is none."""
    folder = tmp_path_factory.mktemp("littered")
    good = interrupted[1]
    shutil.copy(good, folder)
    stamp = "2026-01-01T00-00-0{}-00-00_esr_x"
    (folder / f"{stamp.format(0)}.eval").write_bytes(b"")
    (folder / f"{stamp.format(1)}.eval").write_bytes(good.read_bytes()[:-500])
    (folder / f"{stamp.format(2)}.json").write_text('{"index_in_sae": 1}')
    with zipfile.ZipFile(folder / f"{stamp.format(3)}.eval", "w") as file:
        file.writestr("hello.txt", "hello")
    started = read_eval_log(str(good))
    started.status, started.samples, started.results = "started", [], None
    started.eval.task_id = started.eval.eval_id = "started"
    write_eval_log(started, str(folder / f"{stamp.format(4)}.eval"))
    inspect_eval(
        Task(dataset=[Sample(id="1", input="?")], solver=answer_nothing(), name="esr"),
        model="mockllm/model",
        log_dir=str(folder),
        display="none",
    )
    return folder


@solver
def answer_nothing():
    async def solve(state, generate):
        state.output = output("nothing")
        return state

    return solve


def test_what_is_no_log_of_ours_is_left_out_of_a_folder_by_a_sentence_each(littered):
    for count, told in each_way(littered):
        assert count == 3 and len(told) == 6, told
        assert any("it is empty" in line for line in told)
        assert any("was started and holds no sample yet" in line for line in told)


COMMANDS = [
    ["summary"], ["report", "-o", "REPORT"], ["compare", "GOOD"], ["power", "--log"],
    ["agreement"], ["activations"], ["detectors"], ["finetune", "table"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_leaves_it_out_and_refuses_it_by_name(command, littered, interrupted):
    other = littered.parent / "report"
    args = [{"REPORT": str(other), "GOOD": str(interrupted[1])}.get(one, one) for one in command]
    result = CliRunner().invoke(app, [*args, str(littered)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("Left out: ") >= 6, result.output
    good_is_used = command[0] in ("summary", "report", "compare")
    assert result.exit_code == 0 if good_is_used else result.stderr.count("Error: ") == 1
    for path in sorted(littered.iterdir()):
        if path.name == interrupted[1].name:
            continue
        result = CliRunner().invoke(app, [*args, str(path)])
        assert isinstance(result.exception, SystemExit) and result.exit_code, path
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_the_paper_goes_on_in_a_folder_with_such_files(littered, tmp_path):
    folder = tmp_path / "logs"
    shutil.copytree(littered, folder)
    told = []
    assert finished(folder, {}, told.append) == {} and len(told) == 4
    assert len(list(folder.iterdir())) == 7
    finished(folder, {}, told.append, aside=True)
    assert len(list(folder.glob("*.unreadable"))) == 4
    assert len(list_eval_logs(str(folder))) == 3
    assert finished(folder, {}, told.append) == {} and len(told) == 8


def test_reasons_of_unscored_trials_are_told_with_counts(tmp_path):
    def judge(messages, *_):
        bad = "alpha bad omega" in parse_request(messages).response
        return "?" if bad else verdict(("alpha", "omega", 40))

    said = ("alpha bad omega", "alpha text omega")
    samples = [trial(said[i % 2], i, identifier=str(i)) for i in range(1, 5)]
    log = run(samples, grader(judge), tmp_path)
    lost = sum(s.scores["attempts"].value["unscored"] for s in log.samples)
    assert lost == 2
    [found] = read_all_scored([tmp_path], lambda text: None)
    assert found.unscored == {"invalid_json": 2}
    result = CliRunner().invoke(app, ["summary", str(tmp_path), "--csv", str(tmp_path / "a.csv")])
    assert "Unscored: 2 invalid_json" in result.output
    assert "unscored: invalid_json,2," in (tmp_path / "a.csv").read_text()
    page = write_report([tmp_path], tmp_path / "report").read_text("utf-8")
    head = page[: page.index("<nav>")]
    assert "The verdicts on 2 trials could not be used: 2 invalid_json." in head


FOREIGN = {
    "a rate that is none": lambda log: [
        one.scores["attempts"].value.update(multi_attempt=5.0, unscored=5.0) for one in log.samples
    ],
    "a latent that is none": lambda log: log.samples[0].metadata.update(latent=[1]),
    "scores of text": lambda log: [
        setattr(one.scores["attempts"], "value", "n") for one in log.samples
    ],
    "attempts that are none": lambda log: [
        one.scores["attempts"].metadata.update(attempts=5, judge=[1]) for one in log.samples
    ],
    "activations that are none": lambda log: log.eval.metadata.update(experiment_id="activations"),
    "detectors that are none": lambda log: log.eval.metadata.update(experiment_id="detectors"),
    "a runtime of text": lambda log: log.eval.metadata.update(runtime="x", subject=[5]),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_log_of_ours_with_other_content_is_never_a_traceback(what, interrupted, tmp_path):
    log = read_eval_log(str(interrupted[1]))
    FOREIGN[what](log)
    write_eval_log(log, str(tmp_path / "odd.eval"))
    # The page takes seconds; where it cannot be made, these two are how.
    slow = [] if "rate" in what or "attempts" in what else ["report"]
    for command in (one for one in COMMANDS if one[0] not in slow):
        report = str(tmp_path / "report")
        args = [{"REPORT": report, "GOOD": str(interrupted[1])}.get(one, one) for one in command]
        result = CliRunner().invoke(app, [*args, str(tmp_path / "odd.eval")])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        if result.exit_code and command[0] != "compare":
            assert result.stderr.count("Error: ") == 1
