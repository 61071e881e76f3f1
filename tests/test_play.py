"""The page: what it asks is what an evaluation asks; in a browser where one and Gradio are there."""

import asyncio
import html
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner as Clicked
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import get_model
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.dataset import choose_prompts, draw_tasks
from esr_eval.errors import EsrError
from esr_eval.play.episode import SIDES, Answer, Ask, Stage, told
from esr_eval.play.page import both, check_gradio, drawn, safe
from esr_eval.scorers.phrases import find_restarts
from esr_eval.spec import Steering

TOPIC = "add two fractions"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HERE = Path(sys.executable).parent
RESTARTED = (
    "Fire burns in the hearth. Wait, that's not right. Let me start over. Add the numerators."
)


@pytest.fixture(scope="module")
def stage():
    return Stage(get_model("esr/smollm2-135m", device="cpu"), ["-M", "device=cpu"])


def ask(stage, **more):
    found = Ask(stage.latents[795], TOPIC, 40.0, 3, None, 24)
    return found._replace(**more)


def test_the_request_is_the_trial_that_an_evaluation_draws(stage):
    [(prompt, seed)] = draw_tasks(choose_prompts([TOPIC]), 1, "trials-3-795")
    for side in SIDES:
        one, config = stage.request(ask(stage, until_token=9), side)
        assert (one.text, config.seed, config.max_tokens) == (prompt.text, seed, 24)
        assert config.temperature == stage.subject.temperature
        spec = Steering.from_extra_body(config.extra_body)
        assert spec.runtime == stage.runtime
        boosts = [(edit.latent, edit.strength, edit.until_token) for edit in spec.edits]
        assert boosts == ([(795, 40.0, 9)] if side == "steered" else [])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"topic": "shout"}, "none of the 38 topics"), ({"strength": 0.0}, "a boost is above 0")],
)
def test_what_cannot_be_asked_is_one_sentence_before_weights_load(wrong, said):
    # Not the model that other tests share: theirs may have loaded its weights already.
    stage = Stage(get_model("esr/smollm2-135m", device="cpu", memoize=False), [])

    async def first():
        async for _ in stage.answers(ask(stage, **wrong)):
            pass

    with pytest.raises(EsrError, match=said):
        asyncio.run(first())
    assert stage.provider._backend is None


def test_latents_are_found_by_label_and_index(stage):
    [one] = stage.matching("795")
    assert one.index == 795
    assert one in stage.matching(one.label.upper())
    assert len(stage.matching("", most=3)) == 3
    assert stage.matching("no such label") == []


def test_the_mark_is_the_calibrated_strength(stage):
    found = asyncio.run(stage.mark(stage.latents[795]))
    assert found.value > 0 and told(found).startswith("calibrated")


HOSTILE = '<script>alert(1)</script>"onload=x \u202e & <img src=//x>'


def test_answers_are_text_and_nothing_else():
    shown = safe(HOSTILE)
    assert "<script" not in shown and "<img" not in shown and "\u202e" not in shown
    assert "[U+202E]" in shown
    page = drawn(Answer(HOSTILE, receipt=HOSTILE and "3 tokens"), {})
    assert set(re.findall(r"</?(\w+)", page)) == {"div", "span"}
    named = Answer("ab", lanes={HOSTILE: np.ones(1)}, offsets=np.array([[0, 2]]), receipt="1 token")
    assert "<script" not in both({"steered": named, "unsteered": named})[0]


def test_restarts_are_marked_and_bars_stand_under_their_tokens():
    restarts = find_restarts(RESTARTED, TOPIC)
    offsets = np.array([[at, at + 1] for at in range(len(RESTARTED))])
    values = np.linspace(0, 4, len(RESTARTED))
    answer = Answer(RESTARTED, restarts, {"latent 7": values, "detectors x": values / 2}, offsets)
    page = both({"steered": answer, "unsteered": Answer("off")})[1]
    [marked] = re.findall("<mark>(.*)</mark>", page)
    assert re.sub("<[^>]+>", "", html.unescape(marked)) == restarts[0].phrase
    sizes = re.findall(r"background-size:100% ([\d.]+)px,100% ([\d.]+)px", page)
    assert len(sizes) == len(RESTARTED)
    assert (sizes[0], sizes[-1]) == (("0.0", "0.0"), ("6.0", "6.0"))
    assert re.sub("<[^>]+>", "", html.unescape(page)).startswith(RESTARTED)


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = CliRunner().invoke(app, ["play", "smollm2-135m"])
    assert done.exit_code == 1
    assert "pip install 'gradio>=6.8,<7'" in done.output and len(done.output.splitlines()) <= 3


def evaluated(line, folder):
    """The sample of the printed command, run by Inspect's own."""
    program, *arguments = shlex.split(line)
    assert program == "inspect"
    [script] = entry_points(group="console_scripts", name="inspect")
    more = ["--log-dir", str(folder), "--display", "none"]
    done = Clicked().invoke(script.load().__globals__["inspect"], [*arguments, *more])
    assert done.exit_code == 0, done.output
    [info] = list_eval_logs(str(folder))
    [sample] = read_eval_log(info.name).samples
    return sample


@pytest.mark.model
def test_the_printed_command_gives_the_same_tokens_and_answers_grow(stage, tmp_path):
    asked = ask(stage, until_token=12)

    async def all_of():
        return [found async for found in stage.answers(asked)]

    seen = asyncio.run(all_of())
    last = seen[-1]
    growing = {answer.text for found in seen[:-1] for answer in found.values()} - {""}
    assert growing, "nothing was seen before the end"
    for side in SIDES:
        sample = evaluated(stage.repeat(asked, side), tmp_path / side)
        assert sample.metadata["condition"] == side
        assert sample.output.completion == last[side].text
        tokens, edited = sample.output.usage.output_tokens, sample.output.metadata
        assert last[side].receipt == (
            f"{tokens} tokens, {edited['edited_positions']} positions changed"
        )
        [activations] = last[side].lanes.values()
        assert activations.shape == (len(last[side].offsets),)
        assert last[side].text.startswith(
            max((one[side].text for one in seen[:-1]), key=len).rstrip("\ufffd")
        )
    assert last["steered"].text != last["unsteered"].text
    assert stage.provider._backend.watch is None
    for values in last["steered"].lanes.values():
        # The boost is on before token 12 and off from there.
        assert values[:11].mean() > 3 * values[13:].mean()


def listening(process):
    every = [process, *process.children(recursive=True)]
    found = [one for member in every for one in member.net_connections("inet")]
    return [one.laddr for one in found if one.status == psutil.CONN_LISTEN]


@pytest.mark.model
@pytest.mark.browser
@pytest.mark.skipif(
    CHROMIUM is None or not all(map(importlib.util.find_spec, ("gradio", "playwright"))),
    reason="needs gradio, playwright and chromium",
)
def test_the_page_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    command = [HERE / "esr-eval", "play", "smollm2-135m", "-M", "device=cpu", "--no-browser"]
    with Path(tmp_path / "out").open("w", encoding="utf-8") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        for _ in range(1200):
            if url := re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "out").read_text()):
                break
            assert server.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.1)
        addresses = {one.ip for one in listening(psutil.Process(server.pid))}
        assert addresses == {"127.0.0.1"}
        with sync_playwright() as player:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1200, "height": 1000})
            asked = []
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(url[0])
            tab.get_by_text("▲ calibrated").wait_for(timeout=30_000)
            tab.get_by_label("Longest answer").first.fill("24")
            tab.get_by_role("button", name="Answer").click()
            tab.locator("#steered .about", has_text="tokens").wait_for(timeout=60_000)
            tab.screenshot(path=tmp_path / "play.png", full_page=True)
            for side in SIDES:
                answer = tab.locator(f"#{side} .answer")
                assert answer.locator(".token").count() > 5
                restarts = find_restarts(answer.inner_text(), "")
                assert answer.locator("mark").count() == len(restarts)
                line = tab.locator(f"#repeat-{side} textarea").input_value(timeout=5_000)
                assert line.startswith("inspect eval esr_eval/esr --model esr/smollm2-135m -M ")
            tab.locator("#strength input[type=number]").fill("0")
            tab.get_by_role("button", name="Answer").click()
            tab.get_by_text("a boost is above 0").first.wait_for(timeout=10_000)
            browser.close()
        elsewhere = [one for one in asked if not one.startswith((url[0], "data:", "blob:"))]
        assert not elsewhere
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.browser
def test_gradio_reports_nothing_to_others(monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    check_gradio()
    import gradio as gr

    assert not gr.analytics.analytics_enabled()
