"""What sae-lens's registry says of an SAE, read from its file without importing sae-lens.

The file has 1.5 MB of YAML and takes seconds to parse, and sae-lens seconds more to import, with
all of torch; one release of it is read at once.
"""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from esr_eval.spec import SAERef

_RELEASE = re.compile(r"^(?=\S)(?P<name>[^\s#].*?):[ \t]*\n(?P<body>(?:[ \t-].*\n|\n)*)", re.M)


class Registered(NamedTuple):
    """An SAE of the registry.

    Attributes:
        repo: Repository on the hub.
        path: File or folder in it.
        model: The model it was trained on, as the registry names it.
        labels: Neuronpedia's name of it, MODEL/SOURCE; None where the registry has none.
    """

    repo: str
    path: str
    model: str
    labels: str | None


def registered(ref: SAERef) -> Registered | None:
    """The registry's entry; None where there is no such release, or no such SAE in it."""
    release = _release(ref.release)
    for entry in _saes(release):
        if entry.get("id") == ref.sae_id:
            about = (release.get("repo_id"), entry.get("path"), release.get("model"))
            if not all(about):
                return None
            repo, path, model = map(str, about)
            return Registered(repo, path, model, entry.get("neuronpedia") or None)
    return None


def near(ref: SAERef) -> str | None:
    """What the registry has that is spelled most like this, `RELEASE / ID`; None: nothing is."""
    if ref.release not in _texts():
        return next(iter(difflib.get_close_matches(ref.release, _texts(), n=1)), None)
    ids = [str(entry.get("id")) for entry in _saes(_release(ref.release))]
    close = difflib.get_close_matches(ref.sae_id or "", ids, n=1, cutoff=0)
    return f"{ref.release} / {close[0]}" if close else None


@cache
def _texts() -> dict[str, str]:
    spec = find_spec("sae_lens")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = Path(spec.origin).with_name("pretrained_saes.yaml").read_text("utf-8")
    except OSError:
        return {}
    return {found["name"].strip("\"'"): found["body"] for found in _RELEASE.finditer(text)}


@cache
def _release(name: str) -> dict[str, Any]:
    text = _texts().get(name)
    found = yaml.safe_load(text) if text is not None else None
    return found if isinstance(found, dict) else {}


def _saes(release: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in release.get("saes") or [] if isinstance(entry, dict)]
