"""What the names of two models tell of whether one is made from the other."""

import json
import re
from pathlib import Path

from esr_eval._util.paths import given_path

FAMILIES = (
    *("llama", "tinyllama", "codellama", "gemma", "qwen", "mistral", "mixtral", "pythia"),
    *("gpt2", "gpt-j", "gpt-neo", "gpt-neox", "gpt-oss", "phi", "olmo", "smollm", "falcon"),
    *("granite", "deepseek", "bloom", "mamba", "mpt"),
)
MAKERS = frozenset({"deepseek"})
"""Families that also stand in the names of tuned models of other families."""
VERSIONS_LAST = frozenset({"mistral", "mixtral"})
"""Families that write the version at the end: Mistral-7B-Instruct-v0.3."""
SIZE_WORDS = frozenset({"tiny", "mini", "small", "medium", "large", "xl"})
UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}
CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots")
"""A model's folder in the hub's cache."""


def name_of_model(model: str) -> str | None:
    """What a model is called: its id, or, for a folder, what its config.json says.

    Args:
        model: Hugging Face id, `package:NAME/FILE` or a path.

    Returns:
        None where it cannot be told.
    """
    if found := CACHED.search(model):
        return f"{found[1]}/{found[2]}"
    folder = Path(given_path(model))
    if not folder.exists():
        return model
    try:
        said = json.loads((folder / "config.json").read_text("utf-8"))["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(said, str) or not said:
        return None
    if found := CACHED.search(said):
        return f"{found[1]}/{found[2]}"
    # Another folder's name says nothing.
    return said if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", said) and not said.startswith(".") else None


def difference(one: str, other: str) -> str | None:
    """What two models differ in by their names: 'family', 'version' or 'size'.

    A base model and what was tuned from it agree. What one of the names does not tell, agrees.

    Args:
        one: A model's name or id.
        other: Another's.

    Returns:
        None where the names do not contradict each other.
    """
    families, others = _families(one), _families(other)
    if not families or not others:
        return None
    shared = families.keys() & others.keys()
    if not shared:
        return "family"
    for family in shared:
        if _contradict(families[family], others[family]):
            return "version"
    numbers, words = _sizes(one)
    other_numbers, other_words = _sizes(other)
    if _contradict(numbers, other_numbers) or _contradict(words, other_words):
        return "size"
    return None


def _contradict(one: set[str], other: set[str]) -> bool:
    return bool(one) and bool(other) and one.isdisjoint(other)


def _plain(name: str) -> str:
    """A name's last part in lower case, with dots in numbers and hyphens between words."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    last = re.sub(r"(?<=\d)_(?=\d)", ".", last)
    # llama-3-1-8b is llama-3.1-8b.
    last = re.sub(r"(?<=llama-[2-9])-(?=\d-\d+b)", ".", last)
    return last.replace("_", "-").replace(" ", "-")


def _families(name: str) -> dict[str, set[str]]:
    """The families that a name tells, each with its versions."""
    plain, found = _plain(name), dict[str, set[str]]()
    for family in FAMILIES:
        # A number with a unit, as in gemma-2b, is a size.
        pattern = rf"(?<![a-z]){family}(?:-?v?(\d+(?:\.\d+)*n?)(?![a-z0-9.]))?(?![a-z])"
        for match in re.finditer(pattern, plain):
            versions = found.setdefault(family, set())
            if match[1]:
                versions.add(_version(match[1]))
    for family in VERSIONS_LAST & found.keys():
        found[family] |= {_version(said) for said in re.findall(r"-v(\d[\d.]*)(?![a-z])", plain)}
    return {f: v for f, v in found.items() if f not in MAKERS or found.keys() <= MAKERS}


def _version(said: str) -> str:
    return re.sub(r"(\.0)+$", "", said)


def _sizes(name: str) -> tuple[set[str], set[str]]:
    """Numbers of parameters that a name tells, and its words for sizes."""
    plain = _plain(name)
    told = re.findall(r"(?<![a-z0-9.])(\d+x)?(\d+(?:\.\d+)?)([mbt])(?![a-z0-9])", plain)
    numbers = {f"{experts}{float(number) * UNITS[unit]:g}" for experts, number, unit in told}
    return numbers, set(re.split(r"[^a-z]+", plain)) & SIZE_WORDS
