"""What people see: the report in a real browser, at both widths, and a terminal of 80 columns."""

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evals import embedded
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.data.experiments import display_name, tags
from esr_eval.report.page import write_report
from esr_eval.text import told_apart

ROOT = Path(__file__).resolve().parent.parent
TUNED, BASELINE = ROOT / "logs" / "self-correction", ROOT / "logs" / "baseline"
STORED = ROOT / "tests" / "data" / "logs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
PROBE = """
const seen = element => element.checkVisibility();
const shown = () => [...document.querySelectorAll(".episode")].filter(seen).length;
const told = {all: shown()};
told.width = document.documentElement.scrollWidth;
told.inner = window.innerWidth;
told.figure = document.querySelector("#overview figure").getBoundingClientRect().top;
told.lanes = [...document.querySelectorAll("#overview .track")].filter(seen).length;
told.broken = [...document.images].filter(image => image.complete && !image.naturalWidth).length;
told.folded = [...document.querySelectorAll("#conditions table")].filter(seen).length;
told.stops = [...document.querySelectorAll("a, summary, select")].filter(
  element => seen(element) && element.tabIndex < 0).length;
for (const [name, value] of [["of-restart", "restart-yes"], ["of-improvement", "better-yes"]]) {
  const chooser = document.getElementById(name);
  chooser.value = value;
  told[value] = shown();
  told[value + "-due"] = document.querySelectorAll(".episode." + value).length;
  chooser.value = "";
}
const chooser = document.getElementById("of-condition");
const last = chooser.options[chooser.options.length - 1].value;
chooser.value = last;
told.condition = shown();
told["condition-due"] = document.querySelectorAll(".episode." + last).length;
document.documentElement.textContent = "PROBE" + JSON.stringify(told) + "END";
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report([TUNED, BASELINE], folder).read_text("utf-8")


def probed(page, width, folder):
    """The page's own layout; the copy that is measured alone may run a script, and only ours."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)[0]
    assert "script-src" not in policy and "default-src 'none'" in policy
    inner = page.replace(policy, "").replace("</body>", f"<script>{PROBE}</script></body>")
    # A window of Chromium is at least 500 wide, a frame as narrow as it is told.
    outer = f"<iframe style='width:{width}px;height:900px;border:0' srcdoc='{html.escape(inner)}'>"
    (folder / "outer.html").write_text(
        f"<!doctype html><body style='margin:0'>{outer}</iframe><script>onload = () => "
        "document.body.textContent = frames[0].document.documentElement.textContent</script>",
        "utf-8",
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/own",
        f"--window-size={max(width, 520)},900", "--dump-dom", f"file://{folder}/outer.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search("PROBE(.*)END", done.stdout)[1]))


@browser
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_the_figure_first_and_filters_episodes(page, width, tmp_path):
    found = probed(page, width, tmp_path)
    assert found["inner"] == width
    assert found["width"] <= width, "the page is wider than the window"
    assert found["figure"] < 520 and found["lanes"] >= 16
    assert found["broken"] == found["folded"] == found["stops"] == 0
    for value in ("restart-yes", "better-yes", "condition"):
        assert 0 < found[value] == found[f"{value}-due"] < found["all"]


@pytest.mark.model
@pytest.mark.browser
@browser
def test_inspects_viewer_tells_runs_apart_and_shows_what_was_boosted(tmp_path):
    player = pytest.importorskip("playwright.sync_api")
    few = {"n_latents": 2, "trials_per_latent": 1, "max_tokens": 8}
    for steering in (True, False):
        embedded("esr", tmp_path / "logs", steering=steering, **few)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [Path(sys.executable).parent / "inspect", "view", "--log-dir", tmp_path / "logs"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", port])
    try:
        with player.sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = chromium.new_page(viewport={"width": 1400, "height": 900})
            for _ in range(600):
                if server.poll() is not None or reached(tab, f"http://127.0.0.1:{port}"):
                    break
                time.sleep(0.2)
            rows = tab.locator("[role=row]")
            for half in ("(steere", "(unsteere"):
                cell = rows.get_by_text(half)
                for _ in range(5):
                    # At times the viewer never reads the logs behind its first list.
                    try:
                        cell.first.wait_for(timeout=15_000)
                        break
                    except player.TimeoutError:
                        tab.reload()
                row = rows.filter(has_text="smollm2-135m").filter(has_text=half)
                assert cell.count() == row.count() == 1
                # The list cuts its cells, which their text does not tell.
                assert shown(cell, half), f"{half!r} is cut"
            tab.screenshot(path=tmp_path / "list.png")
            rows.filter(has_text="(steered)").click()
            rows.filter(has_text=re.compile(r"\d attempt")).first.click(timeout=60_000)
            told_there = tab.locator("code", has_text="positions changed")
            told_there.wait_for(timeout=60_000)
            tab.screenshot(path=tmp_path / "sample.png")
            seen = told_there.bounding_box()
            assert seen["y"] < 900, "what was boosted is not on the first screen"
            told = told_there.inner_text()
            assert all(f'"{key}"' in told for key in ("latent", "label", "strength", "receipt"))
            chromium.close()
    finally:
        server.terminate()
        server.wait(20)


def shown(cell, words):
    """Whether words at a cell's beginning lie within every box that cuts it."""
    return cell.evaluate(
        """(cell, words) => {
            const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode();
            const range = document.createRange();
            range.setStart(text, 0);
            range.setEnd(text, words.length);
            const right = range.getBoundingClientRect().right;
            for (let box = cell; box; box = box.parentElement) {
                const cuts = getComputedStyle(box).overflowX !== "visible";
                if (cuts && box.getBoundingClientRect().right < right) return false;
            }
            return true;
        }""",
        words,
    )


def reached(tab, address):
    try:
        tab.goto(address)
    except Exception as error:  # playwright's, which may not be installed
        assert "ERR_CONNECTION_REFUSED" in str(error)
        return False
    return True


def test_the_first_screen_is_a_figure_and_a_line_for_each_experiment(page):
    first = page[page.index('id="overview"') : page.index('id="experiments"')]
    assert first.index('class="dots"') < first.index('class="verdicts"')
    assert first.count("<li><a href=") == 3
    assert "Under the boost 26.0 to 27.1 % of answers start over" in first
    assert "published for llama-70b: 7.4 % (other model" in first
    assert "<script" not in page


def test_conditions_are_named_by_what_differs(page):
    assert "main, smollm2-135m, 8 latents × 3" in page
    assert "main, smollm2-135m, 24 latents × 4" in page
    assert not re.search(r"smollm2-135m(-esr)? \(\d\)", page)


def test_names_are_told_apart_by_the_first_fact_that_does():
    facts = [{"a": "x", "b": "1", "t": "9"}, {"a": "x", "b": "2", "t": "8"}]
    assert told_apart(["n", "n"], facts) == ["n, 1", "n, 2"]
    assert told_apart(["n", "m"], facts) == ["n", "m"]
    assert told_apart(["n", "n"], [{"t": "9"}, {"t": "8"}]) == ["n, 9", "n, 8"]
    assert told_apart(["n", "n"], [{"a": "x"}, {"a": "x"}]) == ["n (1)", "n (2)"]
    three = [{"a": "x", "b": "1"}, {"a": "x", "b": "2"}, {"a": "y", "b": "1"}]
    assert len(set(told_apart(["n"] * 3, [{**one, "t": "0"} for one in three]))) == 3


def test_activations_stand_over_the_text_that_they_were_read_on(tmp_path):
    page = write_report([STORED], tmp_path).read_text("utf-8")
    article = page[page.index('id="experiment-activations"') :]
    assert "boosted latent (full height" in article
    assert re.search(r'class="token b0-\d b1-[1-8]"', article)
    episodes = page[page.index('<section id="episodes"') :]
    assert 'class="strips"' in episodes[: episodes.index("</section>")]


def printed(*arguments, columns="80"):
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": columns})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    "command",
    [("summary", TUNED, BASELINE), ("summary", "--all", TUNED), ("finetune", "table", TUNED)],
)
def test_names_stay_whole_and_distinct_at_80_columns(command):
    output = printed(*command)
    assert max(map(len, output.splitlines())) <= 80
    assert {"smollm2-135m", "smollm2-135m-esr"} <= set(re.findall(r"smollm2-[\w-]+", output))
    assert not re.search(r"smollm2-135m(?!-esr\b)-\w*|smollm2(?!-135m)|…", output)


def test_headline_rates_come_first_and_the_rest_when_asked(tmp_path):
    brief, full = printed("summary", TUNED), printed("summary", "--all", TUNED)
    assert "26.0 %" in brief and "14.3–42.7" in brief and "restarts" in brief
    assert "degraded" not in brief and "--all" in brief
    assert "degraded output" in full and len(full) > 3 * len(brief)


@pytest.mark.parametrize(
    "command", [("summary", TUNED), ("finetune", "table", TUNED), ("activations", STORED)]
)
def test_machines_get_json_and_nothing_else(command):
    path = command[-1] / "activations.eval" if command[0] == "activations" else command[-1]
    rows = json.loads(printed(*command[:-1], path, "--json"))
    assert rows and all(isinstance(row, dict) for row in rows)
    assert "NaN" not in json.dumps(rows)


def test_logs_are_told_apart_by_name_and_tags():
    main = display_name("esr", "smollm2-135m", "steered, main")
    assert main == "Main experiment, steered, smollm2-135m"
    unsteered = display_name("no_steering", "llama-8b", "unsteered, no steering")
    assert unsteered == "No steering, llama-8b"
    held_out = display_name("held_out", "llama-8b", "unsteered, held-out tasks, no steering")
    assert held_out == "Held-out tasks, unsteered, llama-8b"
    ablation = display_name("ablation", "llama-70b", "ablated: paper_26, boost off after 40 tokens")
    assert ablation == (
        "Ablation of the detectors, ablated: paper_26, boost off after 40 tokens, llama-70b"
    )
    assert tags("esr", "llama-8b", "judge/x", "steered") == [
        "esr",
        "steered",
        "llama-8b",
        "judge/x",
    ]
    assert "\u202e" not in "".join(tags("esr", "a\u202eb"))
