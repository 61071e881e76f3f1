"""Whether NDIF can be used, found out in seconds and before any trial."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed
from transformers import GenerationConfig

from esr_eval.backends.ndif.client import CAPTION, Client, Report
from esr_eval.backends.ndif.errors import FORUM, LOGIN, STATUS, PassingError, detail, refused
from esr_eval.backends.remote import RemoteArgs, interruptible_sleep
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.spec import Runtime
from esr_eval.steering.decoding import meddling

T = TypeVar("T")
PACKAGES = ("nnsight", "transformers", "torch")
AGREEING = {"nnsight": 2, "transformers": 1, "torch": 1}
"""How many parts of each version must agree: nnsight's requests change between 0.7 and 0.8."""
TRIES, PAUSE = 4, 2.0
ANSWERED = 422
"""FastAPI's status for a form that lacks a field: everything before that was in order."""


def preflight(client: Client, key: str, repository: str, report: Report) -> dict[str, str]:
    """Check host, key, versions and the model's deployment.

    Args:
        client: The server.
        key: nnsight's name of the model.
        repository: Its Hugging Face id or folder.
        report: Told what is being checked.

    Returns:
        Versions on the server, by package.

    Raises:
        EsrError: Something is in the way; the sentence says what, and the way out.
    """
    report(CAPTION, f"checking {client.url}")
    _check_reachable(client)
    _check_key(client, key)
    versions = _check_versions(client)
    _check_deployed(client, key, repository)
    return versions


def reach(remote: RemoteArgs) -> str:
    """Whether a server is there, takes a key, and fits the versions here; nothing is run on it.

    Raises:
        EsrError: It does not.
    """
    client = Client(remote)
    _check_reachable(client)
    _check_has_key(client)
    there = _check_versions(client)
    return f"NDIF at {client.url}: {', '.join(f'{name} {one}' for name, one in there.items())}"


def check_settings(runtime: Runtime) -> None:
    """Refuse a model whose own generation settings would have a say on the server.

    There they stay with the model, and a request cannot replace them; here it does.

    Raises:
        EsrError: It has such settings.
    """
    source, extra = model_source(runtime)
    try:
        settings = GenerationConfig.from_pretrained(source, **extra)
    except OSError:  # a model need not have such a file
        return
    if own := meddling(settings):
        told = ", ".join(f"{name}={value!r:.40}" for name, value in sorted(own.items()))
        raise EsrError(
            f"{runtime.model} generates with settings of its own ({told}), which NDIF's server "
            "applies whatever a request says: use -M backend=local or vllm."
        )


def _check_reachable(client: Client) -> None:
    out = "Check --model-base-url (or NDIF_HOST) and the network"
    here = " (esr-eval serve ndif start)" if client.loopback else f"; {STATUS} shows its state"

    def ask() -> None:
        try:
            response = client.get("/connected")
        except httpx.HTTPError as error:
            said = str(error).strip() or type(error).__name__
            raise EsrError(
                f"NDIF at {client.url} cannot be reached ({said}). {out}, and that it runs{here}."
            ) from error
        if response.status_code == 503:
            raise EsrError(f"NDIF at {client.url} has no models at the moment: {detail(response)}")
        if not response.is_success:
            raise refused(response, client.url)

    _patiently(ask)


def _check_has_key(client: Client) -> None:
    if not client.has_key and not client.loopback:
        raise EsrError(
            f"NDIF at {client.url} asks for an API key: get one at {LOGIN} and set NDIF_API_KEY."
        )


def _check_key(client: Client, key: str) -> None:
    _check_has_key(client)

    def ask() -> None:
        # Without its payload the form is incomplete, which the server says after the key.
        try:
            response = client.post({"model_key": key}, payload=None)
        except httpx.HTTPError as error:
            raise EsrError(f"NDIF at {client.url} broke the connection: {error}") from error
        if response.status_code != ANSWERED:
            raise refused(response, client.url)

    _patiently(ask)


def _check_versions(client: Client) -> dict[str, str]:
    env = _asked(client, "/env")
    there: dict[str, str] = {p: str(env["packages"].get(p, "")) for p in PACKAGES}
    for package, parts in AGREEING.items():
        here = version(package)
        if not there[package] or _first(here, parts) != _first(there[package], parts):
            raise EsrError(
                f"NDIF at {client.url} has {package} {there[package] or '(none)'}, this machine "
                f"{here}: they do not fit together; pip install {package}=={there[package]}."
            )
    python = str(env.get("python_version", "")).split(" ")[0]
    return {"python": python, **{p: v.partition("+")[0] for p, v in there.items()}}


def _check_deployed(client: Client, key: str, repository: str) -> None:
    deployments: dict[str, dict[str, Any]] = _asked(client, "/status").get("deployments", {})
    states = [
        str(one.get("application_state", "RUNNING"))
        for name, one in deployments.items()
        if one.get("model_key") == key or name.endswith(f":{key}")
    ]
    if "RUNNING" in states or "DEPLOYING" in states:
        return
    others = [
        f"{one.get('repo_id')} (revision {one.get('revision')}, task {one.get('task')})"
        for one in deployments.values()
        if one.get("repo_id") == repository and one.get("deployment_level") in {"HOT", "WARM"}
    ]
    if others:
        raise EsrError(
            f"NDIF at {client.url} has {', '.join(others)} deployed, which is not what was asked "
            f"for ({key.partition(':')[2]}): choose it with -M revision=."
        )
    way_out = (
        "start the server with it (esr-eval serve ndif start)"
        if client.loopback
        else f"{STATUS} shows what is; ask for it at {FORUM}, or in your NDIF account if that may "
        "deploy models"
    )
    state = f" ({', '.join(sorted(set(states)))})" if states else ""
    raise EsrError(f"{repository} is not deployed on NDIF at {client.url}{state}: {way_out}.")


def _asked(client: Client, path: str) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        try:
            response = client.get(path)
        except httpx.HTTPError as error:
            raise EsrError(f"NDIF at {client.url} broke the connection: {error}") from error
        if not response.is_success:
            raise refused(response, client.url)
        return dict(response.json())

    return _patiently(ask)


def _patiently(ask: Callable[[], T]) -> T:
    """Ask a few times: a server that is just coming up is none that is down."""
    again = Retrying(
        retry=retry_if_exception_type((PassingError, EsrError)),
        stop=stop_after_attempt(TRIES),
        wait=wait_fixed(PAUSE),
        sleep=interruptible_sleep,
        reraise=True,
    )
    try:
        return again(ask)
    except PassingError as error:
        raise EsrError(f"NDIF does not work at the moment: {error.reason}") from error


def _first(number: str, parts: int) -> list[str]:
    return number.partition("+")[0].split(".")[:parts]
