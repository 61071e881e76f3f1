"""Activations over the text itself: a bar above each token, as high as the latents are active."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from esr_eval.episodes.traces import SETS, Trace, TraceLog
from esr_eval.text import Characters, one_line, shown

LEVELS = 8
"""Heights of a bar."""
LENGTH = 3000
"""Characters of an answer that are shown."""
_TITLES = {
    "detectors": "detectors",
    "backtracking": "backtracking latents",
    "boosted": "boosted latent",
}


class Token(NamedTuple):
    """A stretch of text over which no bar changes its height."""

    text: list[Characters]
    levels: tuple[int, ...]


class Strips(NamedTuple):
    """An answer under its bars.

    Attributes:
        about: Which answer it is.
        lanes: From top to bottom, whose activation a bar shows, and what its full height means.
        tokens: The answer.
        omitted: Characters left out at its end.
    """

    about: str
    lanes: list[str]
    tokens: list[Token]
    omitted: int


def strips_of(found: TraceLog, traces: Sequence[Trace]) -> list[Strips]:
    """The text of some answers under their activations.

    Args:
        found: Their log, whose greatest activation is a bar's full height.
        traces: Which.
    """
    tops = _tops(found)
    return [_strips(trace, tops) for trace in traces if tops]


def _tops(found: TraceLog) -> dict[str, float]:
    tops = {}
    for name in SETS:
        greatest = [
            float(one.activations[name].mean(0).max(initial=0.0))
            for one in found.traces
            if name in one.activations
        ]
        if greatest:
            tops[name] = max(greatest)
    return tops


def _strips(trace: Trace, tops: Mapping[str, float]) -> Strips:
    names = [name for name in tops if name in trace.activations]
    heights = {
        name: (trace.activations[name].mean(0) / tops[name] if tops[name] else None)
        for name in names
    }
    tokens: list[Token] = []
    cursor = 0
    for at, (start, end) in enumerate(trace.offsets.tolist()):
        levels = tuple(
            0 if (found := heights[name]) is None else round(LEVELS * min(1.0, max(0.0, found[at])))
            for name in names
        )
        start, end = max(start, cursor), min(end, LENGTH)
        if start > cursor:
            tokens.append(Token(shown(trace.response[cursor:start]), (0,) * len(names)))
        if end > start:
            tokens.append(Token(shown(trace.response[start:end]), levels))
        cursor = max(cursor, end)
    rest = trace.response[cursor:LENGTH]
    if rest:
        tokens.append(Token(shown(rest), (0,) * len(names)))
    trial = trace.trial
    return Strips(
        about=one_line(f"{trial.topic}: latent {trial.latent}, {trial.label}", 160),
        lanes=[f"{_TITLES[name]} (full height {tops[name]:.3g})" for name in names],
        tokens=tokens,
        omitted=max(0, len(trace.response) - LENGTH),
    )
