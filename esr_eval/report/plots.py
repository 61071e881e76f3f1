"""The figures of the report, from numbers to axes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esr_eval.logs.measures import Measured
from esr_eval.report.section import Picture
from esr_eval.report.style import BLUE, LINES, SKY, VERMILION, draw
from esr_eval.stats.rates import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
