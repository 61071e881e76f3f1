"""Names and labels are data on every way out: the terminal, CSV, errors, files written whole."""

import csv
import io
import re
import threading
from pathlib import Path

import click
import pandas as pd
import pytest
from rich.table import Table

from esr_eval._util.files import write_whole
from esr_eval._util.output import Terminal, cell, note, tell, uncell, write_csv, write_frame
from esr_eval.calibration.store import load_bundle
from esr_eval.cli.running import strength_table
from esr_eval.data.labels import write_labels
from esr_eval.dataset import Latent, load_latents
from esr_eval.errors import EsrError
from esr_eval.report.page import render
from esr_eval.report.section import RULE, Alarm, Column, Section
from esr_eval.report.section import Table as OneTable
from esr_eval.subjects import find_subject
from esr_eval.text import harmless, one_line

ROOT = Path(__file__).resolve().parent.parent
MARKUP = "[/INST] [bold]x[/] [link=https://a.example]y[/link] [@click=z]w[/] :smile:"
CODES = "\x1b[31m\x1b]8;;https://a.example\x07y\x1b]8;;\x07 \x9b1m \r\x08 \u202e\u2066\u200f \ud800"
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printed(*what, **settings):
    console = Terminal(file=io.StringIO(), width=400, force_terminal=True, color_system=None)
    console.print(*what, **settings)
    return console.file.getvalue()


@pytest.mark.parametrize("place", ["line", "title", "caption", "head", "cell", "rule"])
def test_the_terminal_shows_markup_and_obeys_nothing(place):
    text = MARKUP + CODES
    table = Table(title=text if place == "title" else None)
    table.caption = text if place == "caption" else None
    table.add_column(text if place == "head" else "head", no_wrap=True)
    table.add_row(text if place == "cell" else "cell" * 90)
    if place == "rule":
        console = Terminal(file=io.StringIO(), width=400, color_system=None)
        console.rule(text)
        shown = console.file.getvalue()
    else:
        shown = printed(text if place == "line" else table)
    assert MARKUP in shown and not OBEYED.search(shown)
    assert "[U+001B]" in shown and "[U+202E]" in shown


def test_sentences_and_errors_obey_nothing(capsys):
    tell(CODES)
    note(MARKUP)
    EsrError(f"There is no latent {MARKUP}{CODES}.").show()
    out, err = capsys.readouterr()
    assert "[U+001B]" in out and MARKUP in err and not OBEYED.search(out + err)
    assert isinstance(EsrError("x"), click.ClickException)


def test_calibration_shows_a_label_that_looks_like_markup():
    shipped = load_bundle(find_subject("smollm2-135m").strengths)
    record = next(iter(shipped.values())).model_copy(update={"label": MARKUP + CODES})
    shown = printed(strength_table([record], set()))
    assert "[/INST] [bold]x[/]" in shown and not OBEYED.search(shown)


def test_one_table_is_printed_without_cutting_names_and_put_on_the_page():
    names = [f"smollm2-135m-with-a-long-name-{end}" for end in ("first", "second")]
    table = OneTable(
        "What came out",
        ("", *names, Column("verdict", "left")),
        [("trials", 1234, 5, ""), RULE, ("rate", None, "7.4 %", Alarm("REGRESSION"))],
        "How to read it.",
    )
    shown = {}
    for width in (40, 60, 100):
        console = Terminal(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        shown[width] = console.file.getvalue()
        assert "…" not in shown[width]
        assert max(map(len, shown[width].splitlines())) <= width
    # Where it does not fit, every row is a list with whole names.
    lines = [line.split() for line in shown[60].splitlines()]
    assert [names[0], "1234"] in lines and ["verdict", "REGRESSION"] in lines
    shown = shown[100]
    [heads] = [line.split("┃")[1:-1] for line in shown.splitlines() if line.startswith("┃")]
    assert [head.strip() for head in heads][1:3] == names
    cells = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in cells[0]] == ["trials", "1234", "5", ""]
    assert [cell.strip() for cell in cells[1]][1] == "-" and shown.count("├") == 1
    page = render([Section(id="x", title="x", parts=[table])], "", [])
    for text in (*names, "<bdi>1,234</bdi>", "<bdi>–</bdi>", "<bdi>REGRESSION</bdi>"):
        assert text in page
    assert page.count("<tr>") == 3


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\u200b=", "＝", "'="]
)
def test_no_cell_begins_as_a_formula_and_the_text_can_be_read_back(start, tmp_path):
    text = f"{start}HYPERLINK(1)"
    write_csv(tmp_path / "a.csv", [("label", "n"), (text, -1.5)])
    write_frame(tmp_path / "b.csv", pd.DataFrame({"label": [text], "n": [-1.5]}))
    for name in ("a.csv", "b.csv"):
        with (tmp_path / name).open(newline="") as file:
            _, (label, number) = csv.reader(file)
        assert label == f"'{text}" and uncell(label) == text
        assert number == "-1.5"


def test_a_line_break_in_a_cell_begins_no_line(tmp_path):
    rows = [("label", "n"), ("a\r=1+1", 1), ("b\n=1+1", 2)]
    write_csv(tmp_path / "a.csv", rows)
    write_frame(tmp_path / "b.csv", pd.DataFrame(rows[1:], columns=rows[0]))
    for name in ("a.csv", "b.csv"):
        with (tmp_path / name).open(newline="") as file:
            assert [row[0] for row in csv.reader(file)] == ["label", "a\r=1+1", "b\n=1+1"]


@pytest.mark.parametrize("text", ["fire", "it's", "'quoted'", "a=b", ""])
def test_other_cells_are_as_they_were(text):
    assert cell(text) == text and uncell(text) == text
    assert cell(-3) == -3 and cell(None) is None


def test_a_table_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EsrError, match=r"cannot be written: "):
        write_csv(tmp_path / "file" / "a.csv", [("x",)])
    with pytest.raises(EsrError, match="cannot be written"):
        write_frame(tmp_path, pd.DataFrame({"x": [1]}))


def test_selected_latents_keep_their_labels_through_a_csv(tmp_path):
    latents = [
        Latent(index=1, label="=1+1"),
        Latent(index=2, label="-5"),
        Latent(index=3, label="x"),
    ]
    write_labels(tmp_path / "kept.csv", [(one.index, one.label) for one in latents])
    assert "'=1+1" in (tmp_path / "kept.csv").read_text()
    assert load_latents(find_subject("smollm2-135m"), str(tmp_path / "kept.csv")) == latents


def test_names_are_one_bounded_line():
    assert one_line("a\nb\t c" + CODES).startswith("a b c[U+001B]")
    assert len(one_line("x" * 1000)) == 120
    assert harmless("two\nlines") == "two\nlines"


def test_nothing_goes_out_another_way():
    """A console, a printed sentence or a CSV of its own would let names through."""
    ways = re.compile(
        r"rich\.markup|rich\.console import|typer\.echo|click\.echo|\.to_csv\(|csv\.writer\("
    )
    homes = {"output.py", "section.py"}  # the latter names a console's type, and has none
    sources = [p for d in ("esr_eval", "scorers", "tasks") for p in (ROOT / d).rglob("*.py")]
    found = [p.name for p in sources if p.name not in homes and ways.search(p.read_text("utf-8"))]
    assert len(sources) > 100 and not found


def test_files_are_written_whole_by_many_at_a_time(tmp_path):
    target = tmp_path / "new" / "file"
    contents = [bytes([at]) * 100_000 for at in range(8)]
    writers = [threading.Thread(target=write_whole, args=(target, one)) for one in contents]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert target.read_bytes() in contents
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(self, other):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
