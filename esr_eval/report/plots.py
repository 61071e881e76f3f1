"""The report's figures: readable in grey, the same bytes for the same numbers."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from esr_eval.episodes.traces import NOWHERE, SETS, Trace
from esr_eval.logs.measures import Measured
from esr_eval.report.section import Picture
from esr_eval.scorers.cleaning import plain
from esr_eval.stats.rates import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette: told apart with any colour vision; lightness falls from left to right.
ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, BLACK = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#000000",
)
LINES = (
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (ORANGE, "D", ":"),
    (PURPLE, "v", (0, (5, 1, 1, 1, 1, 1))),
    (SKY, "P", (0, (1, 1))),
)
"""Colour, marker and line style: any one of them tells the lines apart."""
SIZE = (4.3, 3.0)
"""Inches. At 96 dpi as wide as a phone, so that the text is never scaled down to nothing."""

_SETTINGS = {
    "svg.hashsalt": "esr-eval",
    "svg.fonttype": "path",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "hatch.linewidth": 1.0,
    "figure.constrained_layout.use": True,
}


@contextmanager
def look() -> Iterator[None]:
    """Draw in the report's style, whatever the user's own matplotlib settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def draw(
    paint: "Callable[[Axes], None]",
    *,
    alt: str,
    caption: str,
    size: tuple[float, float] = SIZE,
) -> Picture:
    """Draw one figure and embed it.

    Args:
        paint: Draws on the axes.
        alt: What the figure shows, with its numbers, for those who do not see it.
        caption: Printed below.
        size: Width and height in inches.
    """
    from matplotlib.figure import Figure as NewFigure

    with look():
        # Not pyplot: it keeps every figure alive and may want a display.
        figure = NewFigure(figsize=size)
        paint(figure.add_subplot())
        return embed(figure, alt=alt, caption=caption)


def embed(figure: "Figure", *, alt: str, caption: str, wide: bool = False) -> Picture:
    """A finished figure as data: inside an image element nothing of it can act on the page."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names in scripts that the font does not have are drawn as boxes; the alt text has them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption, wide)


SCORE_BINS = np.arange(0.0, 101.0, 10.0)
CHANGE_BINS = np.arange(-100.0, 101.0, 20.0)


def histogram(
    values: Floats, bins: Floats, *, title: str, xlabel: str, reference: Floats | None = None
) -> Picture:
    """Shares of trials per bin; a reference condition as an outline over the bars.

    Args:
        values: One number per trial, without NaN.
        bins: Edges; the last bin includes its upper edge.
        title: Of the figure.
        xlabel: What the numbers are.
        reference: The reference condition's numbers.
    """
    shares = _shares(values, bins)

    def paint(axes: "Axes") -> None:
        axes.bar(
            bins[:-1],
            100 * shares,
            np.diff(bins),
            align="edge",
            color=SKY,
            edgecolor="black",
            linewidth=0.6,
            hatch="//",
            label="this condition",
        )
        axes.axvline(float(values.mean()), color=VERMILION, linewidth=1.6, linestyle="--")
        if reference is not None and len(reference):
            axes.stairs(100 * _shares(reference, bins), bins, color="black", linewidth=1.6)
            axes.plot([], [], color="black", linewidth=1.6, label="main run")
        axes.plot([], [], color=VERMILION, linestyle="--", label=f"mean {values.mean():.1f}")
        axes.set(title=title, xlabel=xlabel, ylabel="share of trials, %")
        # Room for the legend above the highest bar.
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
        axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=3)

    told = ", ".join(
        f"{low:.0f} to {high:.0f}: {100 * share:.0f} %"
        for low, high, share in zip(bins[:-1], bins[1:], shares, strict=True)
    )
    return draw(
        paint,
        alt=f"Histogram, {title}; {xlabel}; {told}; mean {values.mean():.1f}; n = {len(values)}.",
        caption=f"{title}: n = {len(values):,}",
    )


def _shares(values: Floats, bins: Floats) -> Floats:
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    return np.asarray(counts / max(1, len(values)), dtype=float)


def curves(
    series: Mapping[str, Sequence[tuple[float, Measured]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    scale: float = 1.0,
    top: float | None = None,
    signed: bool = False,
) -> Picture:
    """Measured numbers over a level, with their intervals.

    Args:
        series: By name, levels and what was measured there.
        title: Of the figure.
        xlabel: What the levels are.
        ylabel: What was measured.
        scale: 100 to show shares in percent.
        top: Upper end of the axis; None leaves it to the data.
        signed: Differences: the axis goes as far down as they do, with a line at 0.
    """

    def paint(axes: "Axes") -> None:
        levels = sorted({level for points in series.values() for level, _ in points})
        # Side by side, so that intervals do not hide each other.
        shift = 0.06 * float(np.diff(levels).min()) if len(levels) > 1 else 0.06
        for at, (name, points) in enumerate(series.items()):
            colour, marker, line = LINES[at % len(LINES)]
            x = np.array([level for level, _ in points]) + shift * (at - (len(series) - 1) / 2)
            y = scale * np.array([one.value for _, one in points])
            low = scale * np.array([one.value if one.low is None else one.low for _, one in points])
            high = scale * np.array(
                [one.value if one.high is None else one.high for _, one in points]
            )
            axes.errorbar(
                x,
                y,
                [np.maximum(0, y - low), np.maximum(0, high - y)],
                color=colour,
                marker=marker,
                linestyle=line,
                linewidth=1.4,
                markersize=5,
                capsize=2.5,
                elinewidth=0.9,
                label=name,
            )
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if signed:
            axes.axhline(0, color="black", linewidth=0.9, linestyle=":")
        else:
            axes.set_ylim(0, top or max(1.0, axes.get_ylim()[1]))
        if len(series) > 1:
            axes.legend(fontsize=8, frameon=False)

    told = "; ".join(
        f"{name}: "
        + ", ".join(f"{scale * one.value:.1f} at {level:+g} (n = {one.n})" for level, one in points)
        for name, points in series.items()
    )
    return draw(paint, alt=f"Curve, {title}; {ylabel} over {xlabel}; {told}.", caption=title)


def scatter(
    x: Floats,
    y: Floats,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    diagonal: bool = False,
    noun: str = "latent",
) -> Picture:
    """One point for each latent (or other noun); a diagonal where both axes measure the same."""

    def paint(axes: "Axes") -> None:
        if diagonal:
            axes.plot([0, 100], [0, 100], color="black", linewidth=0.9, linestyle=":")
            axes.set(xlim=(-3, 103), ylim=(-3, 103))
        small = len(x) > 150
        axes.scatter(
            x,
            y,
            s=10 if small else 26,
            marker="o",
            facecolors="none" if small else SKY,
            edgecolors=BLUE,
            linewidths=0.8,
        )
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)

    spread = ""
    if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        spread = f" Correlation {np.corrcoef(x, y)[0, 1]:+.2f}."
    ranges = f"{xlabel} {x.min():.1f} to {x.max():.1f}, {ylabel} {y.min():.1f} to {y.max():.1f}"
    return draw(
        paint,
        alt=f"Scatter of {len(x)} {noun}s, {title}; {ranges}.{spread}",
        caption=f"{title}: {len(x)} {noun}s.{spread}",
    )


REGION_STYLES = {
    "on_topic_before": ("on-topic, before any drift", "#56B4E9", ""),
    "off_topic": ("off-topic", "#E69F00", "///"),
    "correction": ("correction", "#CC79A7", "xxx"),
    "on_topic": ("on-topic, after the drift", "#009E73", "..."),
}
"""Name in the legend, colour, hatching."""
LINE_STYLES = {"detectors": "-", "backtracking": "--", "boosted": "-."}
TITLES = {"detectors": "detectors", "backtracking": "backtracking", "boosted": "boosted latent"}
MOST_TICKS = 48
"""Tokens written out below the figure; of more, every second, third, and so on."""
LONGEST_TICK = 14


def trace_figure(trace: Trace, title: str | None = None) -> "Figure":
    """Draw mean activations of each set of latents over an answer's tokens.

    Args:
        trace: The answer. Regions are shaded where its judge marked them.
        title: Above the figure; None says which latent was boosted and what was asked.

    Returns:
        A figure outside pyplot's registry: save it with `figure.savefig`.
    """
    from matplotlib.figure import Figure

    names = [name for name in SETS if name in trace.activations]
    figure = Figure(figsize=(11, 1.4 + 1.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    places = np.arange(len(trace.offsets))
    for name, axes in zip(names, panels, strict=True):
        _shade(axes, trace)
        values = trace.activations[name]
        axes.plot(places, values.mean(0), LINE_STYLES[name], color="black", linewidth=1.2)
        count = f"\n(mean of {len(values)})" if len(values) > 1 else ""
        axes.set_ylabel(f"{TITLES[name]}{count}", fontsize=8)
        axes.set_ylim(bottom=min(0.0, float(values.mean(0).min(initial=0.0))))
        axes.margins(x=0)
        axes.tick_params(axis="y", labelsize=7)
    step = max(1, -(-len(places) // MOST_TICKS))
    panels[-1].set_xticks(
        places[::step],
        [_tick(trace, int(place)) for place in places[::step]],
        rotation=90,
        fontsize=6,
        parse_math=False,
    )
    panels[-1].set_xlabel(
        "token of the answer" if step == 1 else f"token of the answer, one in {step} written out",
        fontsize=8,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(_drawn(title or _title(trace), 150), fontsize=9, parse_math=False)
    return figure


def _shade(axes: "Axes", trace: Trace) -> None:
    at = 0
    named: set[str] = set()
    for kind, group in groupby(trace.kinds.tolist()):
        length = len(list(group))
        if kind != NOWHERE:
            label, colour, hatch = REGION_STYLES[kind]
            axes.axvspan(
                at - 0.5,
                at + length - 0.5,
                facecolor=colour,
                alpha=0.25,
                hatch=hatch,
                edgecolor="#444444",
                linewidth=0,
                # Once in the legend, however often it comes.
                label=None if kind in named else label,
            )
            named.add(kind)
        at += length


def _title(trace: Trace) -> str:
    trial = trace.trial
    what = f"latent {trial.latent} “{trial.label}”"
    boost = f"{what} boosted by {trial.strength:g}" if trace.steered else f"{what} not boosted"
    return f"{trial.topic}: {boost}"


def _tick(trace: Trace, place: int) -> str:
    start, end = trace.offsets[place].tolist()
    return _drawn(trace.response[start:end], LONGEST_TICK)


def _drawn(text: str, limit: int) -> str:
    """Text as one harmless line; what the font cannot draw becomes a box, without a warning."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(char if font.get_char_index(ord(char)) else "□" for char in plain(text, limit))
