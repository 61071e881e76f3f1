"""Sending requests to NDIF and getting their answers, whatever happens on the way.

A request is posted, its state is asked for until it is done, and its result is fetched from the
server's store. Nothing hangs on an open connection: a cut network loses neither the request nor
its answer. What the server itself lost is sent again, whole, and only the last answer counts.
"""

import io
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
import zstandard
from nnsight.schema.config import CONFIG
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from esr_eval.backends.ndif.errors import PassingError, explain, refused, said
from esr_eval.backends.ndif.patience import Patience, Watch
from esr_eval.backends.remote import RemoteArgs, server_url
from esr_eval.backends.waiting import nap
from esr_eval.errors import EsrError

Report = Callable[[str, str], None]
"""Told what goes on: a caption and a short text."""

SEND_SECONDS = httpx.Timeout(120.0, connect=10.0)
ASK_SECONDS = httpx.Timeout(15.0, connect=10.0)
POLL_FIRST, POLL_LAST, POLL_GROWTH = 0.05, 1.0, 1.3
MOST_RESULT_BYTES = 1 << 30
CAPTION = "NDIF"


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
        self.loopback = urlsplit(self.url).hostname in {"127.0.0.1", "localhost", "::1"}
        self.server_seconds, self.sent_bytes, self.retries = 0.0, 0, 0
        self._key = remote.api_key or os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY
        self._wait = remote.wait
        self._report = report or (lambda caption, text: None)
        self._at_once = threading.BoundedSemaphore(remote.requests)
        self._counting = threading.Lock()
        # A proxy of the environment knows nothing of this machine's loopback address.
        self._http = httpx.Client(trust_env=not self.loopback, timeout=SEND_SECONDS)

    @property
    def has_key(self) -> bool:
        """Whether a key has been given."""
        return bool(self._key)

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
        patience = Patience(self._wait)
        with self._at_once:
            for attempt in Retrying(
                retry=retry_if_exception_type(PassingError),
                stop=patience,
                wait=wait_exponential_jitter(initial=0.5, max=15.0),
                sleep=nap,
                before_sleep=self._retry,
                retry_error_callback=lambda state: patience.give_up(state, self.url),
            ):
                with attempt:
                    return self._once(job)
        raise AssertionError("tenacity returns or raises")

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
        watch = Watch(self._wait)
        pause = POLL_FIRST
        while True:
            nap(pause)
            pause = min(POLL_LAST, pause * POLL_GROWTH)
            try:
                response = self.get(f"/response/{name}")
                if response.status_code >= 500:
                    raise httpx.TransportError(f"HTTP status {response.status_code}")
            except httpx.HTTPError as error:
                self._report(CAPTION, f"no contact ({said(error)}), waiting")
                watch.no_contact(error)
                continue
            if response.status_code == 404:
                watch.unknown()
                continue
            if not response.is_success:
                raise refused(response, self.url)
            state = response.json()
            if watch.saw(state):
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
            return dict(torch.load(plain, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise EsrError(
                f"NDIF at {self.url} sent a result that is no mere data: {str(error)[:200]}"
            ) from error

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
