"""HTTP to a vLLM server: requests sent again when the server was lost, errors told plainly."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from esr_eval.backends.remote import interruptible_sleep, is_loopback, server_url
from esr_eval.errors import EsrError

CONNECT_SECONDS = 5.0
LONGEST_PAUSE = 5.0
MOST_FAULTS = 3
"""A server that answers 500 again and again will not get better by asking."""


class ServerGoneError(RuntimeError):
    """The server could not be reached, or went away before it answered."""


class ServerFaultError(RuntimeError):
    """The server answered that something went wrong inside it."""


class Server:
    """One vLLM server, asked from many threads."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        wait: float,
        report: Callable[[str, str], None],
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            base_url: Address with or without `/v1`.
            api_key: The server's key, if it asks for one.
            wait: Seconds for which a lost server is tried again.
            report: Told how the server is, in few words.
        """
        self.url = server_url(base_url).removesuffix("/v1")
        self.check_again: Callable[[], None] = lambda: None
        self._wait = wait
        self._report = report
        self._stale = False
        self._returning = threading.Lock()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            # A request that got no answer for that long is lost with its connection.
            timeout=httpx.Timeout(max(wait, 120.0), connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment knows nothing of this machine's loopback address.
            trust_env=not is_loopback(self.url),
        )

    def get(self, path: str) -> dict[str, Any]:
        """Ask once and read the JSON answer; raises as `post` does."""
        return self._read(self._send("GET", path, None))

    def post(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        """Ask once and read the JSON answer.

        Args:
            path: Of the interface.
            body: JSON, or bytes as they are.

        Raises:
            ServerGoneError: There was no answer.
            ServerFaultError: The server failed inside.
            EsrError: The server refuses the request.
        """
        return self._read(self._send("POST", path, body))

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_success:
            read: dict[str, Any] = answer.json()
            return read
        said = error_text(answer)
        if answer.status_code in (401, 403):
            raise EsrError(
                f"The vLLM server at {self.url} does not accept the key: set VLLM_API_KEY to the "
                "one it was started with (--api-key)."
            )
        if answer.status_code >= 500:
            raise ServerFaultError(f"The vLLM server at {self.url} failed inside: {said}")
        raise EsrError(f"The vLLM server at {self.url} refuses the request: {said}")

    def post_patiently(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        """Ask until there is an answer, as long as the user will wait for a lost server.

        A request is only ever answered whole: one that died is sent again from its beginning, to
        a server that has passed the checks of the first connection once more.

        Raises:
            EsrError: The server stayed away, or refuses the request.
            RuntimeError: It fails on this request every time.
        """
        patience = _Patience(self._wait)
        again = Retrying(
            retry=retry_if_exception_type((ServerGoneError, ServerFaultError)),
            wait=wait_exponential_jitter(initial=0.5, max=LONGEST_PAUSE, jitter=0.5),
            sleep=interruptible_sleep,
            stop=patience.is_over,
            before_sleep=self._lost,
            reraise=True,
        )
        try:
            return again(self._attempt, path, body)
        except ServerGoneError as error:
            raise EsrError(
                f"The vLLM server at {self.url} went away and did not come back within "
                f"{self._wait:.0f} s ({error}); start it again and run `inspect eval-retry` on the "
                "log (-M wait= sets how long it is waited for)."
            ) from error

    def _attempt(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        if self._stale:
            with self._returning:
                if self._stale:
                    self.check_again()
                    self._stale = False
                    self._report("vLLM", "back")
        answer = self.post(path, body)
        if any(c["finish_reason"] not in ("stop", "length") for c in answer.get("choices", ())):
            raise ServerGoneError("it gave the request up half-way")
        return answer

    def _lost(self, state: RetryCallState) -> None:
        self._stale = True
        self._report("vLLM", "lost, trying again")

    def _send(self, method: str, path: str, body: dict[str, Any] | bytes | None) -> httpx.Response:
        try:
            sent: dict[str, Any] = {"content" if isinstance(body, bytes) else "json": body}
            answer = self._http.request(method, path, **sent)
        except httpx.TransportError as error:
            raise ServerGoneError(f"{type(error).__name__}: {error}") from error
        if answer.status_code in (429, 502, 503, 504):
            raise ServerGoneError(f"status {answer.status_code}")
        return answer


class _Patience:
    """Counts from the first failure: a long answer before it costs no patience."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._faults = 0

    def is_over(self, state: RetryCallState) -> bool:
        """Whether to stop trying after this attempt."""
        self._since = self._since or time.monotonic()
        error = state.outcome.exception() if state.outcome else None
        self._faults += isinstance(error, ServerFaultError)
        return self._faults >= MOST_FAULTS or time.monotonic() - self._since > self._seconds


def error_text(answer: httpx.Response) -> str:
    """What an error answer says, without the request that it may quote."""
    try:
        said = answer.json()
        text = str(said.get("error", said).get("message", said))
    except (ValueError, AttributeError):
        text = answer.text
    return f"{text[:300]} (status {answer.status_code})"
