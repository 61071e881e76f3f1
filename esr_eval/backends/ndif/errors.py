"""What goes wrong with NDIF: in one sentence each, to be tried again or for good, and how long."""

import re
import time
from typing import Any

import httpx
from tenacity import RetryCallState

from esr_eval.errors import EsrError

LOGIN = "https://login.ndif.us"
STATUS = "https://nnsight.net/status"
FORUM = "https://discuss.ndif.us"
PASSING = re.compile(
    r"try again later|already running|evicted|preempted|cancelled|reconnecting|"
    r"payload could not be read|(actor|worker|node) (has )?(died|unavailable)",
    re.IGNORECASE,
)
"""Errors of requests that may well run when sent again."""
NO_MODULE = re.compile(r"No module named '([\w.]+)'")
MISSES = 3
"""A known request that the server knows no more, so many times in a row, is lost."""
FORGOTTEN_SECONDS = 15.0
"""A server that went away and is back runs what waited in its memory within this, or never."""
SILENCE = {"RUNNING": 3.0, "QUEUED": 6.0, "PROVISIONING": 6.0, "DEPLOYING": 6.0}
"""How long a request may stay in a state without a sign, in parts of `wait`."""
OTHER_SILENCE = 0.5
LEAST_COST = 20
"""At most so many tries, however fast each fails."""


class PassingError(Exception):
    """A try failed in a way that another may not.

    Attributes:
        reason: What happened.
        lost: Seconds that were waited in vain.
    """

    def __init__(self, reason: str, lost: float = 0.0) -> None:
        """Say what happened."""
        super().__init__(reason)
        self.reason, self.lost = reason, lost

    def for_good(self, url: str, tries: int) -> EsrError:
        """The error when no further try is made."""
        return EsrError(
            f"The request to NDIF at {url} failed {tries} times, at last because {self.reason}; "
            f"see whether it is up ({STATUS}), or give it longer with -M wait=SECONDS."
        )


def refused(response: httpx.Response, url: str) -> Exception:
    """What an HTTP error means."""
    status, said = response.status_code, detail(response)
    if status in {401, 403} or (status == 400 and "API key" in said):
        return EsrError(
            f"NDIF at {url} does not accept the API key ({said}): get one at {LOGIN} and set "
            "NDIF_API_KEY to it."
        )
    if status == 400 and "version" in said:
        return EsrError(f"NDIF at {url} does not accept this client: {said}")
    if status == 413:
        return EsrError(
            f"NDIF at {url} finds the request too large: lower -M batch_size=, or clamp fewer "
            "latents."
        )
    if status == 429 or status >= 500:
        kind = "the quota is used up for now" if status == 429 else "the server is out of order"
        return PassingError(f"{kind} ({said})")
    if status in {404, 405}:
        return EsrError(
            f"There is no NDIF server at {url} (HTTP status {status}): check --model-base-url or "
            "NDIF_HOST."
        )
    return EsrError(f"NDIF at {url} refuses the request (HTTP status {status}): {said}")


def explain(description: str) -> Exception:
    """What a request's own error means."""
    last = description.strip().splitlines()[-1].strip() if description.strip() else "no reason"
    if "out of memory" in description.lower():
        return MemoryError(f"NDIF ran out of memory: {last}")
    if "execution timeout" in description:
        return EsrError(
            f"The request took NDIF too long ({last}): lower -M batch_size= or --max-tokens."
        )
    if "doesn't match the one your" in description:
        return EsrError(
            "NDIF built the model otherwise than this machine: its version of transformers is "
            "another; install the one that the server has (see the versions that esr-eval names, "
            "or print(nnsight.compare()))."
        )
    if "Could not deploy" in description:
        return EsrError(f"NDIF does not deploy the model: {last}")
    if missing := NO_MODULE.search(description):
        return EsrError(
            f"NDIF lacks the Python module {missing.group(1)} that the request needs: its versions "
            "and this machine's do not fit together (print(nnsight.compare()))."
        )
    if PASSING.search(description):
        return PassingError(f"the server gave it up ({last})")
    return EsrError(f"The request failed on NDIF: {last}")


def detail(response: httpx.Response) -> str:
    """What a server says about an HTTP error, in one line."""
    try:
        body = response.json()
        said = body.get("detail", body) if isinstance(body, dict) else body
    except ValueError:
        said = response.text
    return " ".join(str(said).split())[:300] or f"HTTP status {response.status_code}"


def said(error: Exception) -> str:
    """An error's own words, or else its name."""
    return str(error).strip() or type(error).__name__


class RequestMonitor:
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
