"""What all commands share: errors as one sentence, and `name=value` arguments."""

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer

from esr_eval.errors import EsrError
from esr_eval.terminal import tell

P = ParamSpec("P")
R = TypeVar("R")


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Tell an `EsrError` as its one sentence."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EsrError as error:
            tell(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None

    return run


def pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """`name=value` arguments; values are read as JSON where they are JSON."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise EsrError(f"{option} {pair} is not of the form NAME=VALUE.")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
