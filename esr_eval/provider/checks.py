"""What must hold before a run begins, each by itself, so that all that does not is told at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from packaging.requirements import Requirement

from esr_eval.errors import EsrError

State = Literal["ok", "note", "stop"]
ORDER = (
    *("versions", "device", "memory", "access", "judge", "labels", "SAE", "layers", "adapter"),
    *("strengths", "server"),
)
"""As a user meets them."""
VERSIONED = ("inspect-ai", "transformers", "sae-lens", "nnsight", "torch")
"""Packages of which another version than the ones tried changes or breaks a run."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What, in one word.
        state: `stop` stands in the way of a run, `note` only wants to be known.
        said: What was found; of a stop, with the way out.
    """

    name: str
    state: State
    said: str


def look(name: str, at: Callable[[], Check | str | None]) -> list[Check]:
    """Look at one thing.

    Args:
        name: What.
        at: Returns what it found, None where there is nothing to tell, and raises an `EsrError`
            for what stands in the way.
    """
    try:
        found = at()
    except EsrError as error:
        return [Check(name, "stop", error.message)]
    if found is None:
        return []
    return [found if isinstance(found, Check) else Check(name, "ok", found)]


def in_order(found: Sequence[Check]) -> list[Check]:
    """As a user meets them; what is not in `ORDER` comes last."""
    at = {name: number for number, name in enumerate(ORDER)}
    return sorted(found, key=lambda one: at.get(one.name, len(ORDER)))


def raise_stops(found: Sequence[Check]) -> None:
    """Raise one `EsrError` that tells every stop there is; nothing where there is none."""
    stops = [one for one in in_order(found) if one.state == "stop"]
    if len(stops) == 1:
        raise EsrError(stops[0].said)
    if stops:
        told = "\n".join(f"{at}. {one.name}: {one.said}" for at, one in enumerate(stops, 1))
        raise EsrError(f"{len(stops)} things stand in the way of this run:\n{told}")


def check_versions() -> str:
    """Compare what is installed with what this package says it needs.

    Raises:
        EsrError: A package is missing, or of a version outside these bounds.
    """
    have, wrong, wanted = [], [], []
    for needed in map(Requirement, requires("esr-eval") or []):
        if needed.name not in VERSIONED or needed.marker is not None:
            continue
        try:
            there = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is not installed")
            wanted.append(f"'{needed}'")
            continue
        have.append(f"{needed.name} {there}")
        if not needed.specifier.contains(there, prereleases=True):
            wrong.append(f"{needed.name} is {there}")
            wanted.append(f"'{needed}'")
    if wrong:
        raise EsrError(
            f"{'; '.join(wrong)}: this package needs another: pip install {' '.join(wanted)}"
        )
    return ", ".join(have)
