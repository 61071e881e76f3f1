"""The page itself, on Gradio: fields, two answers, and the lines that repeat them.

Answers, labels and paths are hostile text: whatever is shown of them passes through `text.shown`
and is escaped, and the page's policy lets it load or run nothing of another place.
"""

import html
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from esr_eval._util.output import tell
from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.play.episode import SIDES, Answer, Ask, Side, Stage, told
from esr_eval.text import harmless, one_line, shown

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; form-action 'none'"
)
LANES = ("#b04a00", "#00507a")
CSS = """
.answer { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 12em; line-height: 2.4; }
.answer mark { background: #ffe08a; color: #1b1b1b; outline: 1px solid #8a6d00; }
.answer mark::before { content: "restart "; font: bold .75em system-ui; }
.answer .token { padding-bottom: 17px; background-repeat: no-repeat; }
.answer .odd { outline: 1px dotted; font-size: .8em; }
.about { font-size: .85em; opacity: .8; }
.mark { text-align: center; font-size: .85em; }
"""
MISSING = "The page needs Gradio, which is not installed: pip install 'gradio>=6.8,<7'."


def safe(text: str) -> str:
    """Foreign text as HTML that shows it and does nothing else."""
    return "".join(
        f'<span class="odd">{html.escape(run.text)}</span>'
        if run.special
        else html.escape(run.text)
        for run in shown(text)
    )


def drawn(answer: Answer, tops: Mapping[str, float]) -> str:
    """An answer as HTML: bars under its tokens, and its restarts marked.

    Args:
        answer: The answer.
        tops: Activation that is a bar's full height, by set of latents.
    """
    bounds = {0, len(answer.text), *answer.offsets.ravel().tolist()}
    bounds |= {place for one in answer.restarts for place in (one.start, one.end)}
    cuts = sorted(place for place in bounds if 0 <= place <= len(answer.text))
    token, parts = 0, []
    for start, end in pairwise(cuts):
        while token < len(answer.offsets) and answer.offsets[token][1] <= start:
            token += 1
        inside = token < len(answer.offsets) and answer.offsets[token][0] <= start
        heights = [
            min(1.0, max(0.0, float(values[token]) / tops[name])) if inside and tops[name] else 0.0
            for name, values in answer.lanes.items()
        ]
        opens = [one for one in answer.restarts if one.start == start]
        closes = [one for one in answer.restarts if one.end == end]
        parts.append("<mark>" * bool(opens) + _token(safe(answer.text[start:end]), heights))
        parts.append("</mark>" * bool(closes))
    restarts = len(answer.restarts)
    about = [answer.receipt, f"{restarts} restart{'' if restarts == 1 else 's'}"]
    about += [
        f'<b style="color:{color}">▬</b> {safe(one_line(name))} (full height {tops[name]:.3g})'
        for color, name in zip(LANES, answer.lanes, strict=False)
    ]
    said = " · ".join(about) if answer.receipt else ""
    return f'<div class="answer">{"".join(parts)}</div><div class="about">{said}</div>'


def _token(text: str, heights: list[float]) -> str:
    if not heights:
        return text
    layers = [f"linear-gradient({color},{color})" for color in LANES[: len(heights)]]
    room = 16 / len(heights)
    places = [
        f"0 calc(100% - {room * (len(heights) - 1 - at):.0f}px)" for at in range(len(heights))
    ]
    sizes = [f"100% {(room - 2) * height:.1f}px" for height in heights]
    style = (
        f"background-image:{','.join(layers)};background-position:{','.join(places)};"
        f"background-size:{','.join(sizes)}"
    )
    return f'<span class="token" style="{style}">{text}</span>'


def both(found: Mapping[Side, Answer]) -> list[str]:
    """Both answers as HTML, bars on one scale."""
    tops: dict[str, float] = {}
    for answer in found.values():
        for name, values in answer.lanes.items():
            tops[name] = max(tops.get(name, 0.0), float(values.max(initial=0.0)))
    return [drawn(found[side], tops) for side in SIDES]


def check_gradio() -> None:
    """Import Gradio, with its reports to others off.

    Raises:
        EsrError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise EsrError(MISSING) from None


def page(stage: Stage) -> "Blocks":
    """The page for a model.

    Raises:
        EsrError: Gradio is not installed.
    """
    check_gradio()
    import gradio as gr

    @contextmanager
    def told_in_one_sentence() -> Iterator[None]:
        try:
            yield
        except (EsrError, RuntimeError) as error:
            raise gr.Error(html.escape(harmless(str(error))), print_exception=False) from None

    def choices(text: str) -> list[tuple[str, int]]:
        return [(f"{one.index}: {one_line(one.label)}", one.index) for one in stage.matching(text)]

    def search(text: str) -> Any:
        found = choices(text)
        return gr.Dropdown(choices=found, value=found[0][1] if found else None)

    async def slide(index: int | None) -> tuple[Any, str]:
        if index is None:
            return gr.Slider(), '<div class="mark">no latent has such a label</div>'
        with told_in_one_sentence():
            strength = await stage.mark(stage.latents[int(index)])
        top = float(f"{2 * strength.value:.3g}")
        slider = gr.Slider(0, top, value=float(f"{strength.value:.4g}"), step=top / 200)
        return slider, f'<div class="mark">▲ {safe(told(strength))}</div>'

    async def run(
        topic: str, index: int | None, strength: float, until: float | None, length: int, seed: int
    ) -> AsyncIterator[list[str]]:
        with told_in_one_sentence():
            if index is None:
                raise EsrError("Choose a latent first.")
            ends = int(until) if until else None
            latent = stage.latents[int(index)]
            ask = Ask(latent, topic, float(strength), int(seed), ends, int(length))
            async for found in stage.answers(ask):
                yield [*both(found), *(stage.repeat(ask, side) for side in SIDES)]

    longest = stage.subject.max_tokens or 512
    first = choices("")
    with gr.Blocks(title=f"{stage.subject.name}, steered and not", analytics_enabled=False) as made:
        with gr.Row():
            topic = gr.Dropdown([(one.text, one.topic) for one in prompts()], label="Task")
            text = gr.Textbox(label="Labels that contain", elem_id="search")
            latent = gr.Dropdown(first, value=first[0][1] if first else None, label="Latent")
        with gr.Row():
            with gr.Column():
                strength = gr.Slider(0, 1, label="Strength", elem_id="strength")
                mark = gr.HTML()
            until = gr.Number(0, label="Boost until token (0: to the end)", precision=0, minimum=0)
            length = gr.Slider(8, longest, longest, step=1, label="Longest answer")
            seed = gr.Number(random.randrange(1000), label="Seed", precision=0, minimum=0)  # noqa: S311
        go = gr.Button("Answer", variant="primary", elem_id="go")
        shown_in, lines = [], []
        with gr.Row():
            for side in SIDES:
                with gr.Column():
                    gr.Markdown(f"### {side}")
                    shown_in.append(gr.HTML(elem_id=side))
        for side in SIDES:
            line = gr.Textbox(label=f"Repeat {side}", elem_id=f"repeat-{side}", buttons=["copy"])
            lines.append(line)
        own: dict[str, Any] = {"api_visibility": "private"}
        text.change(search, text, latent, **own)
        latent.change(slide, latent, [strength, mark], **own)
        made.load(slide, latent, [strength, mark], **own)
        fields = [topic, latent, strength, until, length, seed]
        go.click(run, fields, [*shown_in, *lines], concurrency_limit=1, **own)
    return made


def serve(stage: Stage, port: int | None = None, browse: bool = True) -> None:
    """Show the page on loopback until it is interrupted.

    Args:
        stage: The model.
        port: On 127.0.0.1; None takes a free one.
        browse: Whether to open a browser.

    Raises:
        EsrError: Gradio is not installed, or the port is taken.
    """
    made = page(stage)
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [
        Middleware(_Policy),
        # A foreign page whose name was made to point here is not answered.
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
    ]
    # The default theme asks another host for its fonts.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, url, _ = made.queue().launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browse,
            prevent_thread_lock=True,
            quiet=True,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"middleware": guards},
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        raise EsrError(f"The page cannot be opened ({error}): pass another --port.") from None
    tell(f"The page: {url} (Ctrl-C ends it)")
    made.block_thread()


class _Policy:
    """Adds the page's policy to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                ]
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)
