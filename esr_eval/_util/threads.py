"""Several threads of this process beside each other: one generates or reads, others judge."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Generic, TypeVar

Made = TypeVar("Made")

SHORT_TURN = 0.0002
"""Seconds for which another thread's Python may hold up one that computes. At Python's own 5 ms
each of a model's hundreds of operations may wait so long (docs/scaling.md)."""

_lock = threading.Lock()
_computing = 0
_usual = 0.0


@contextmanager
def threads_taking_short_turns() -> Iterator[None]:
    """While a model computes, let other threads give way soon. Several may do so at once."""
    global _computing, _usual
    with _lock:
        if _computing == 0:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, SHORT_TURN))
        _computing += 1
    try:
        yield
    finally:
        with _lock:
            _computing -= 1
            if _computing == 0:
                sys.setswitchinterval(_usual)


class MadeOnce(Generic[Made]):
    """A function's result, made by the first thread that asks while the others wait.

    `functools.cache` lets every thread that asks before the first is ready make its own: of a wave
    of answers that are judged together, each loaded a model.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        """Take the function; nothing is called yet."""
        self.__doc__ = make.__doc__
        self._lock = threading.Lock()
        self._make = cache(make)

    def __call__(self) -> Made:
        """The one result."""
        with self._lock:
            return self._make()

    def cache_clear(self) -> None:
        """Make it anew when it is asked for next."""
        self._make.cache_clear()
