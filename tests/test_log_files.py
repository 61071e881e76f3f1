"""Files that are no logs, told the same way wherever a log is read."""

import re

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log

from esr_eval.analysis.agreement import agreement_of
from esr_eval.analysis.discovery import read_discovery
from esr_eval.analysis.measured import read_measured
from esr_eval.analysis.report.logs import read_stored
from esr_eval.analysis.runs import read_log
from esr_eval.analysis.trial_values import read_values
from esr_eval.errors import EsrError
from esr_eval.judged import read_judged
from esr_eval.log_files import planned_of, reading
from esr_eval.replay import read_responses, replay_log

READERS = [
    agreement_of, read_discovery, read_measured, read_stored, read_log, read_values, read_judged,
    read_responses, replay_log,
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
    path.write_text("", "utf-8")
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
