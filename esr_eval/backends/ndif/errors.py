"""What goes wrong with NDIF, in one sentence each: to be tried again, or for good."""

import re

import httpx

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
