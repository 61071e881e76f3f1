"""What all commands share: options, checked arguments, errors as one sentence."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from esr_eval._util.output import tell
from esr_eval.data.arguments import (
    AT_LEAST_ONE,
    FILE_TO_WRITE,
    GRADER,
    LOG_FOLDER,
    POSITIVE,
    PRICES,
    check,
    shown,
)
from esr_eval.errors import EsrError

Subject = Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")]
Grader = Annotated[
    str | None, typer.Option(help="Judge, PROVIDER/MODEL. Default: the subject's."), GRADER
]
ModelArgs = Annotated[
    list[str] | None, typer.Option("-M", help="Provider argument, e.g. -M dtype=bfloat16.")
]
TaskArgs = Annotated[
    list[str] | None, typer.Option("-T", help="Task argument, e.g. -T check_samples=0.")
]
LogDir = Annotated[str | None, typer.Option(help="Where Inspect keeps the log."), LOG_FOLDER]
Csv = Annotated[
    Path | None, typer.Option(help="Also write the numbers to this file."), FILE_TO_WRITE
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the numbers as JSON instead, for machines.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest response."), AT_LEAST_ONE]
TokensPerSecond = Annotated[
    float | None, typer.Option(help="The subject's speed, for the estimate."), POSITIVE
]
JudgePrice = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Dollars per million tokens that the judge reads, and writes."),
    PRICES,
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only the estimate.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")]
"""Options that several commands have: the names above."""

P = ParamSpec("P")
R = TypeVar("R")


class Program(TyperGroup):
    """A program that takes no empty arguments: to `pathlib`, an empty path is the folder here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse them, for all commands below."""
        if any(not arg.strip() or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            tell("Error: An argument is empty: give it a value, or leave it out.", err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Check a command's arguments against its annotations, and tell errors in one sentence."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            values = check(function, given, lambda name: f"{_said(function, name)} ")
            return function(**values)  # type: ignore[call-arg]
        except EsrError as error:
            tell(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            where = f"{shown(error.filename)}: " if error.filename else ""
            tell(f"Error: {where}{error.strerror or shown(error)}.", err=True)
            raise typer.Exit(1) from None

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


def _said(function: Callable[..., Any], name: str) -> str:
    """What the user types for an argument: `--power`, or `LOG` for one without a dash."""
    for mark in get_args(get_type_hints(function, include_extras=True)[name]):
        if isinstance(mark, ArgumentInfo):
            return name.upper()
        if isinstance(mark, OptionInfo) and mark.param_decls:
            return mark.param_decls[-1]
    return f"--{name.replace('_', '-')}"


def pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """`name=value` arguments; values are read as JSON where they are JSON."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise EsrError(f"{option} {shown(pair)} is not of the form NAME=VALUE.")
        if name in found:
            raise EsrError(f"{option} {shown(name)}= is given twice.")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def with_pairs(options: Mapping[str, Any], given: list[str] | None) -> dict[str, Any]:
    """Task arguments that have options of their own, and the others, from `-T`.

    Raises:
        EsrError: `-T` names one that has an option.
    """
    further = pairs(given, "-T")
    for name in further:
        if name in options:
            raise EsrError(f"-T {name}= has an option of its own: --{name.replace('_', '-')}.")
    return {**options, **further}
