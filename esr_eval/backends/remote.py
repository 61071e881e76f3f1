"""How a backend on another machine, or in another process, is reached, and waited for."""

import ipaddress
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from esr_eval.errors import EsrError

DEFAULT_WAIT = 600.0
DEFAULT_REQUESTS = 2
STEP_SECONDS = 0.2


@dataclass(frozen=True)
class RemoteArgs:
    """Where a server is and how patient to be with it.

    Attributes:
        base_url: The server's address; None leaves it to the backend (NDIF's own host, or the
            vLLM server that `esr-eval serve vllm` started).
        api_key: Key for it; never logged.
        requests: Most requests of whole batches under way at once.
        wait: Seconds for which a server that went away, or a request that got no answer, is tried
            again.
        sae_rows: A file with the rows of the SAE that are needed, in the SAE's place.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    requests: int = DEFAULT_REQUESTS
    wait: float = DEFAULT_WAIT
    sae_rows: Path | None = None


def server_url(given: str) -> str:
    """A server's address, without a slash at its end.

    Raises:
        EsrError: It is none.
    """
    try:
        parts = urlsplit(given)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is no number
        valid = False
    if not valid:
        raise EsrError(
            f"'{given}' is no address of a server: one looks like http://127.0.0.1:8000 "
            "(--model-base-url)."
        )
    return given.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine's loopback address."""
    return is_loopback_host(urlsplit(url).hostname or "")


def is_loopback_host(host: str) -> bool:
    """Whether a name or an IP address is this machine's loopback address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def interruptible_sleep(seconds: float) -> None:
    """Sleep as long as the process goes on.

    An interrupted evaluation gives its requests up, but at its end the interpreter waits for every
    thread, and one that is patient with a server would take minutes.

    Raises:
        InterruptedError: The process is about to end.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        # The main thread counts as ended from where the interpreter begins to wait for the others.
        if not threading.main_thread().is_alive():
            raise InterruptedError("The process ends, so the server is not waited for.")
        time.sleep(min(left, STEP_SECONDS))
