"""How figures look and are embedded: readable in grey, the same bytes for the same numbers."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esr_eval.report.section import Picture

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
