"""What sae-lens's registry says of an SAE, read from its file without importing sae-lens.

The file has 1.5 MB of YAML and takes seconds to parse, and sae-lens seconds more to import; one
release of it is read at once.
"""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from esr_eval.spec import SAERef

FILE = "pretrained_saes.yaml"
_RELEASE = re.compile(r"^(?=\S)(?P<name>[^\s#].*?):[ \t]*\n(?P<body>(?:[ \t-].*\n|\n)*)", re.M)
_ENTRY = re.compile(r"^[ \t]*- (?=id:)", re.M)
_FIELD = r"^{}:[ \t]*(.+?)[ \t]*$"
_OF_RELEASE, _OF_SAE = "  ", "[ ]*"
"""What stands before the fields of each; a release has further ones below some of its own."""


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
    body = _releases().get(ref.release)
    if body is None or ref.sae_id is None:
        return None
    repo, model = (_field(body, _OF_RELEASE + name) for name in ("repo_id", "model"))
    for entry in _ENTRY.split(body)[1:]:
        if _field(entry, "id") == ref.sae_id:
            path, labels = (_field(entry, _OF_SAE + name) for name in ("path", "neuronpedia"))
            return Registered(repo, path, model, labels) if repo and path and model else None
    return None


def near(ref: SAERef) -> str | None:
    """What the registry has that is spelled most like this, `RELEASE / ID`; None: nothing is."""
    releases = _releases()
    if ref.release not in releases:
        return next(iter(difflib.get_close_matches(ref.release, releases, n=1)), None)
    entries = _ENTRY.split(releases[ref.release])[1:]
    ids = [found for entry in entries if (found := _field(entry, "id"))]
    close = difflib.get_close_matches(ref.sae_id or "", ids, n=1, cutoff=0)
    return f"{ref.release} / {close[0]}" if close else None


@cache
def _releases() -> dict[str, str]:
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = (Path(spec.origin).parent / FILE).read_text("utf-8")
    except OSError:
        return {}
    return {found["name"].strip("\"'"): found["body"] for found in _RELEASE.finditer(text)}


def _field(text: str, name: str) -> str | None:
    found = re.search(_FIELD.format(name), text, re.M)
    value = found[1].strip("\"'") if found else None
    return None if value in (None, "null", "~") else value
