"""What all commands share: errors as one sentence, and `name=value` arguments."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def own_options(*names: str) -> Iterator[None]:
    """Tell errors of a task's arguments by the options that the command has for them.

    Args:
        names: Arguments with an option of their own: `-T latents=FILE` is told as `--latents FILE`,
            and the judge, which every such command has an option for, as `--grader`.
    """
    given = re.compile(rf"(?:-T )?(?<![\w.-])({'|'.join(names)})=(?=(\s|[,.:;)]|$)?)")

    def option(found: re.Match[str]) -> str:
        at_end = found[2] is not None
        return f"--{found[1].replace('_', '-')}" + ("" if at_end else " ")

    try:
        yield
    except EsrError as error:
        said = error.message.replace("--model-role grader=", "--grader ")
        raise EsrError(given.sub(option, said)) from error


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
