"""How a backend on another machine, or in another process, is reached."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from esr_eval.errors import EsrError

DEFAULT_WAIT = 600.0
DEFAULT_REQUESTS = 2


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
        trust_server: Send hooks, which are code, to a server that is not on this machine.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    requests: int = DEFAULT_REQUESTS
    wait: float = DEFAULT_WAIT
    sae_rows: Path | None = None
    trust_server: bool = False


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
