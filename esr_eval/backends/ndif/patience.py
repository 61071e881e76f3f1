"""How long a request to NDIF is waited for, and how often it is sent again."""

import time
from typing import Any

import httpx
from tenacity import RetryCallState

from esr_eval.backends.ndif.errors import PassingError, said

MISSES = 3
"""A known request that the server knows no more, so many times in a row, is lost."""
FORGOTTEN_SECONDS = 15.0
"""A server that went away and is back runs what waited in its memory within this, or never."""
SILENCE = {"RUNNING": 3.0, "QUEUED": 6.0, "PROVISIONING": 6.0, "DEPLOYING": 6.0}
"""How long a request may stay in a state without a sign, in parts of `wait`."""
OTHER_SILENCE = 0.5
LEAST_COST = 20
"""At most so many tries, however fast each fails."""


class Watch:
    """Decides from what is heard of a request, and not heard, when it is lost."""

    def __init__(self, limit: float) -> None:
        """Start listening.

        Args:
            limit: How patient to be, in seconds (`RemoteArgs.wait`).
        """
        self._limit = limit
        self._heard = self._changed = time.monotonic()
        self._state: dict[str, Any] = {}
        self._misses = 0
        self._back: float | None = None  # when a server that had gone away answered again
        self._gone = False

    def no_contact(self, error: httpx.HTTPError) -> None:
        """Take note that the server did not answer.

        Raises:
            PassingError: It has not for too long.
        """
        # A refused connection says that the server's process has ended, a timeout only that the
        # network is cut.
        self._gone |= isinstance(error, (httpx.ConnectError, httpx.RemoteProtocolError))
        if time.monotonic() - self._heard > self._limit:
            raise PassingError(f"the server cannot be reached ({said(error)})", self._limit)

    def unknown(self) -> None:
        """Take note that the server does not know the request.

        Raises:
            PassingError: It did before, or should by now.
        """
        self._contact()
        self._misses += 1
        if self._state and self._misses >= MISSES:
            raise PassingError("the server has lost the request")
        self._check()

    def saw(self, state: dict[str, Any]) -> bool:
        """Take note of a state; whether it is a new one.

        Raises:
            PassingError: It has been the same for too long.
        """
        self._contact()
        self._misses = 0
        if state != self._state:
            self._state, self._changed, self._back = state, self._heard, None
            return True
        self._check()
        return False

    def _contact(self) -> None:
        self._heard = time.monotonic()
        if self._gone:
            self._back, self._gone = self._heard, False

    def _check(self) -> None:
        limit = self._limit * SILENCE.get(str(self._state.get("status")), OTHER_SILENCE)
        silent = self._heard - self._changed
        if silent > limit:
            raise PassingError(f"nothing was heard of the request for {silent:.0f} s", limit)
        # A running request lives in another process than the one that went away.
        running = self._state.get("status") == "RUNNING"
        if self._back is not None and not running and self._heard - self._back > FORGOTTEN_SECONDS:
            raise PassingError("the server was started anew and has lost the request")


class Patience:
    """Ends the tries once too many seconds have been lost on them."""

    def __init__(self, wait: float) -> None:
        """Nothing lost yet.

        Args:
            wait: Seconds that may be lost.
        """
        self._wait = wait
        self._lost = 0.0

    def __call__(self, state: RetryCallState) -> bool:
        """Whether to stop (tenacity's question after each failed try)."""
        error = state.outcome.exception() if state.outcome else None
        lost = error.lost if isinstance(error, PassingError) else 0.0
        self._lost += max(lost, self._wait / LEAST_COST) + state.upcoming_sleep
        return self._lost > self._wait

    def give_up(self, state: RetryCallState, url: str) -> dict[str, Any]:
        """Raise the last try's failure as an error for good (tenacity's call at the end).

        Raises:
            EsrError: Always.
        """
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, PassingError)
        raise error.for_good(url, state.attempt_number) from error
