"""Figures of numbers with intervals as rows of marks: text that reflows, shapes told by form."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Shape = Literal["full", "ring", "triangle", "diamond", "square", "published", "elsewhere"]
"""Forms, so that grey tells them apart: a published value is an upright stroke."""

TICKS = (1, 2, 5, 10, 20, 25, 50)
MOST_TICKS = 6


class Mark(NamedTuple):
    """A number on the axis.

    Attributes:
        shape: What kind of number it is.
        value: Where it lies.
        low: Lower end of its interval, or of what was published; None where there is none.
        high: Upper end.
        said: What it is, in words, for those who do not see it.
    """

    shape: Shape
    value: float
    low: float | None
    high: float | None
    said: str


class Lane(NamedTuple):
    """One line of marks: what they measure, and the main one in words."""

    name: str
    marks: list[Mark]
    text: str


class Row(NamedTuple):
    """What the lanes were measured of."""

    name: str
    note: str
    lanes: list[Lane]


class Group(NamedTuple):
    """Rows under a heading; an empty one is not shown."""

    title: str
    rows: list[Row]


class Key(NamedTuple):
    """A line of the legend."""

    shape: Shape
    meaning: str


class Dots(NamedTuple):
    """A figure: rows of marks over one axis.

    Attributes:
        title: What it shows.
        unit: Of the axis.
        groups: The rows.
        keys: The legend.
        axis: Where it begins and ends; None lets the marks decide, from 0.
    """

    title: str
    unit: str
    groups: list[Group]
    keys: list[Key]
    axis: tuple[float, float] | None = None
    kind: str = "dots"

    @property
    def span(self) -> tuple[float, float]:
        """Both ends of the axis: the next tick beyond the marks, but those ends that are given."""
        if self.axis is not None:
            return self.axis
        step = self._step
        low, high = self._reach
        # A mark at the very end would be cut in half.
        return step * math.floor(low / step), step * math.ceil((high + 1e-9) / step)

    @property
    def ticks(self) -> list[float]:
        """Round numbers along the axis."""
        low, high = self.span
        return [low + self._step * at for at in range(round((high - low) / self._step) + 1)]

    def place(self, value: float) -> str:
        """Where a value lies, in percent of the axis, for SVG."""
        low, high = self.span
        return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"

    @property
    def _reach(self) -> tuple[float, float]:
        if self.axis is not None:
            return self.axis
        ends = [
            end
            for group in self.groups
            for row in group.rows
            for lane in row.lanes
            for mark in lane.marks
            for end in (mark.value, mark.low, mark.high)
            if end is not None and math.isfinite(end)
        ]
        return min([0.0, *ends]), max([1.0, *ends])

    @property
    def _step(self) -> float:
        low, high = self._reach
        return next((one for one in TICKS if (high - low) / one <= MOST_TICKS), 100)


def lanes_of(groups: Sequence[Group]) -> int:
    """How many lines of marks there are."""
    return sum(len(row.lanes) for group in groups for row in group.rows)
