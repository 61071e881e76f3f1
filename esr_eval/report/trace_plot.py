"""One answer token by token: activations of the latents read, regions shaded behind them.

Sets differ by panel, regions by hatching as well as colour, so that the figure reads in grey and
to the colour-blind (colours of Okabe and Ito).
"""

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from esr_eval.episodes.region_tokens import NOWHERE
from esr_eval.episodes.traces import SETS, Trace
from esr_eval.scorers.trials import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
