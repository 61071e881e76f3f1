"""Sending requests to NDIF and getting their answers, whatever happens on the way.

A request is posted, its state is asked for until it is done, and its result is fetched from the
server's store. Nothing hangs on an open connection: a cut network loses neither the request nor
its answer. What the server itself lost is sent again, whole, and only the last answer counts.
"""

import io
import json
import os
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx
import torch
import zstandard
from nnsight.schema.config import CONFIG
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from esr_eval.backends.remote import RemoteArgs, interruptible_sleep, is_loopback, server_url
from esr_eval.errors import EsrError

Report = Callable[[str, str], None]
"""Told what goes on: a caption and a short text."""

SEND_SECONDS = httpx.Timeout(120.0, connect=10.0)
ASK_SECONDS = httpx.Timeout(15.0, connect=10.0)
POLL_FIRST, POLL_LAST, POLL_GROWTH = 0.05, 1.0, 1.3
MOST_RESULT_BYTES = 1 << 30
CAPTION = "NDIF"
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


@dataclass(frozen=True)
class Job:
    """One request.

    Attributes:
        key: nnsight's name of the model.
        env: What the server sets before it runs the request.
        payload: What it runs.
    """

    key: str
    env: dict[str, Any]
    payload: bytes


class Client:
    """One NDIF server.

    Attributes:
        url: Its address, without a slash at the end.
        loopback: Whether it is on this machine.
        has_key: Whether a key has been given.
        server_seconds: Seconds that the server has spent on this client's requests.
        sent_bytes: Bytes of the payloads sent, retries included.
        retries: How often a request was sent again.
    """

    def __init__(self, remote: RemoteArgs, report: Report | None = None) -> None:
        """Nothing is asked yet.

        Args:
            remote: Address, key and patience.
            report: Told about the queue, states and retries.
        """
        self.url = server_url(remote.base_url or os.environ.get("NDIF_HOST") or CONFIG.API.HOST)
        self.loopback = is_loopback(self.url)
        self.server_seconds, self.sent_bytes, self.retries = 0.0, 0, 0
        self._key = remote.api_key or os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY
        self.has_key = bool(self._key)
        self._wait = remote.wait
        self._report = report or (lambda caption, text: None)
        self._at_once = threading.BoundedSemaphore(remote.requests)
        self._counting = threading.Lock()
        # A proxy of the environment knows nothing of this machine's loopback address.
        self._http = httpx.Client(trust_env=not self.loopback, timeout=SEND_SECONDS)

    def get(self, path: str) -> httpx.Response:
        """Ask the server something, once.

        Raises:
            httpx.HTTPError: It cannot be reached.
        """
        return self._http.get(f"{self.url}{path}", headers=self._headers(), timeout=ASK_SECONDS)

    def post(self, data: dict[str, Any], payload: bytes | None) -> httpx.Response:
        """Post a request, once; without a payload it is checked but not run.

        Raises:
            httpx.HTTPError: The server cannot be reached.
        """
        files = {} if payload is None else {"blob": ("request", payload)}
        return self._http.post(
            f"{self.url}/request",
            data={"data": json.dumps(data)},
            files=files or None,
            headers=self._headers(),
        )

    def run(self, job: Job) -> dict[str, Any]:
        """Have a request run and return what its block saved.

        It is tried again, with back-off, as long as that can help; a try's answer replaces all
        earlier ones.

        Raises:
            EsrError: The server refuses it, or `wait` seconds have been lost on tries.
            MemoryError: The server ran out of memory: a smaller batch may fit.
        """
        again = Retrying(
            retry=retry_if_exception_type(PassingError),
            stop=Patience(self._wait),
            wait=wait_exponential_jitter(initial=0.5, max=15.0),
            sleep=interruptible_sleep,
            before_sleep=self._retry,
            reraise=True,
        )
        with self._at_once:
            try:
                return again(self._once, job)
            except PassingError as error:
                raise EsrError(
                    f"The request to NDIF at {self.url} failed "
                    f"{again.statistics['attempt_number']} times, at last because {error.reason}; "
                    f"see whether it is up ({STATUS}), or give it longer with -M wait=SECONDS."
                ) from error

    def _once(self, job: Job) -> dict[str, Any]:
        data = {"model_key": job.key, "compress": True, "env": job.env}
        try:
            response = self.post(data, job.payload)
        except httpx.HTTPError as error:
            raise PassingError(f"the server cannot be reached ({said(error)})") from error
        if not response.is_success:
            raise refused(response, self.url)
        with self._counting:
            self.sent_bytes += len(job.payload)
        done = self._follow(str(response.json()["id"]))
        return self._fetch(done)

    def _follow(self, name: str) -> dict[str, Any]:
        """Ask for a request's state until it has an end."""
        monitor = RequestMonitor(self._wait)
        pause = POLL_FIRST
        while True:
            interruptible_sleep(pause)
            pause = min(POLL_LAST, pause * POLL_GROWTH)
            try:
                response = self.get(f"/response/{name}")
                if response.status_code >= 500:
                    raise httpx.TransportError(f"HTTP status {response.status_code}")
            except httpx.HTTPError as error:
                self._report(CAPTION, f"no contact ({said(error)}), waiting")
                monitor.no_contact(error)
                continue
            if response.status_code == 404:
                monitor.unknown()
                continue
            if not response.is_success:
                raise refused(response, self.url)
            state = response.json()
            if monitor.saw(state):
                self._report(CAPTION, f"{state['status'].lower()}: {state.get('description', '')}")
            if state["status"] == "ERROR":
                raise explain(str(state.get("description", "")))
            if state["status"] == "COMPLETED":
                return dict(state)

    def _fetch(self, done: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self._http.get(str(done["data"]))
        except httpx.HTTPError as error:
            raise PassingError(f"its result cannot be fetched ({said(error)})") from error
        if not response.is_success:
            raise PassingError(f"its result is gone (HTTP status {response.status_code})")
        seconds = float((done.get("meta") or {}).get("runtime") or 0.0)
        with self._counting:
            self.server_seconds += seconds
        self._report(CAPTION, f"done in {seconds:.1f} s, {self.server_seconds:.0f} s in all")
        reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(response.content))
        plain = io.BytesIO(reader.read(MOST_RESULT_BYTES))
        try:
            # Numbers and tensors only: what a server sends must not run here.
            found = dict(torch.load(plain, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise EsrError(
                f"NDIF at {self.url} sent a result that is no mere data: {str(error)[:200]}"
            ) from error
        if not found:
            # Every block saves something. A server whose interface came back may start the next
            # request beside one that still runs, and then ends the first with nothing.
            raise PassingError("its result came back empty")
        return found

    def _retry(self, state: RetryCallState) -> None:
        with self._counting:
            self.retries += 1
        assert state.outcome is not None
        self._report(CAPTION, f"sending again: {state.outcome.exception()}")

    def _headers(self) -> dict[str, str]:
        about = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        return about | ({"ndif-api-key": self._key} if self._key else {})


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
