"""HTTP to a vLLM server: requests sent again when the server was lost, errors told plainly."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from esr_eval.backends.remote import RemoteArgs, interruptible_sleep, is_loopback, server_url
from esr_eval.errors import EsrError

KEY_ENV = "VLLM_API_KEY"
"""Environment variable with the server's key; the one that the server itself reads."""
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
        self, remote: RemoteArgs, report: Callable[[str, str], None] = lambda label, value: None
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            remote: Address with or without `/v1`, key, and for how long a lost server is tried.
            report: Told how the server is, in few words.
        """
        assert remote.base_url is not None  # whoever starts servers knows which one
        self.url = server_url(remote.base_url).removesuffix("/v1")
        self.check_again: Callable[[], None] = lambda: None
        self._wait, self._report = remote.wait, report
        self._stale = False
        self._returning = threading.Lock()
        key = remote.api_key or os.environ.get(KEY_ENV)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # A request that got no answer for that long is lost with its connection.
            timeout=httpx.Timeout(max(remote.wait, 120.0), connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment knows nothing of this machine's loopback address.
            trust_env=not is_loopback(self.url),
        )

    def get(self, path: str) -> dict[str, Any]:
        """Ask once and read the JSON answer; raises as `post` does."""
        return self._ask("GET", path)

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
        sent: dict[str, Any] = {"content" if isinstance(body, bytes) else "json": body}
        return self._ask("POST", path, **sent)

    def _ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **sent)
        except httpx.TransportError as error:
            raise ServerGoneError(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return dict(answer.json())
        said, where = error_text(answer), f"The vLLM server at {self.url}"
        if answer.status_code in (429, 502, 503, 504):
            raise ServerGoneError(said)
        if answer.status_code in (401, 403):
            raise EsrError(
                f"{where} does not accept the key: set {KEY_ENV} to the one it was started with "
                "(--api-key)."
            )
        if answer.status_code >= 500:
            raise ServerFaultError(f"{where} failed inside: {said}")
        raise EsrError(f"{where} refuses the request: {said}")

    def post_patiently(self, path: str, body: dict[str, Any] | bytes) -> dict[str, Any]:
        """Ask until there is an answer, as long as the user will wait for a lost server.

        A request is only ever answered whole: one that died is sent again from its beginning, to
        a server that has passed the checks of the first connection once more.

        Raises:
            EsrError: The server stayed away, or refuses the request.
            RuntimeError: It fails on this request every time.
        """
        again = Retrying(
            retry=retry_if_exception_type((ServerGoneError, ServerFaultError)),
            wait=wait_exponential_jitter(initial=0.5, max=LONGEST_PAUSE, jitter=0.5),
            sleep=interruptible_sleep,
            stop=_patience(self._wait),
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


def _patience(seconds: float) -> Callable[[RetryCallState], bool]:
    """Counts from the first failure: a long answer before it costs no patience."""
    failed: list[tuple[float, bool]] = []

    def is_over(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        failed.append((time.monotonic(), isinstance(error, ServerFaultError)))
        faults = sum(fault for _, fault in failed)
        return faults >= MOST_FAULTS or failed[-1][0] - failed[0][0] > seconds

    return is_over


def error_text(answer: httpx.Response) -> str:
    """What an error answer says, without the request that it may quote."""
    try:
        said = answer.json()
        text = str(said.get("error", said).get("message", said))
    except (ValueError, AttributeError):
        text = answer.text
    return f"{text[:300]} (status {answer.status_code})"
