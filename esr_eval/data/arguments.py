"""Arguments mean what they say or are refused: their types, and the one check of all of them.

Tasks and commands declare what they take in their annotations; `checked` and `command` hold every
value against them, before anything is read or loaded.
"""

import functools
import inspect
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    get_args,
    get_type_hints,
)

import click
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from esr_eval._util.output import aside
from esr_eval._util.paths import given_path
from esr_eval.errors import EsrError
from esr_eval.spec import Dtype
from esr_eval.subjects import SearchMethod

if TYPE_CHECKING:
    from inspect_ai import Task

P = ParamSpec("P")
T = TypeVar("T")

STRICT = ConfigDict(strict=True, allow_inf_nan=False, str_min_length=1)
"""Of every argument: 1 is no `true`, 2.0 no count, nan no number, and nothing no text."""
MOST_EACH = 10_000
"""Trials, answers or rounds of one latent or task: beyond this it is a slip of the finger."""
MOST = 10_000_000
"""The same for all other counts: as many latents as the largest SAEs have."""
STRONGEST = 1e9
"""No model's residual stream is anywhere near as long."""
SHOWN = 80
OWN_JUDGE = "esr-judge/self"
"""The model under test as its own judge; `self` for short."""

AT_LEAST_ONE = Field(ge=1, le=MOST)
NOT_NEGATIVE = Field(ge=0, le=MOST)
A_FEW = Field(ge=1, le=MOST_EACH)
A_FEW_OR_NONE = Field(ge=0, le=MOST_EACH)
PERCENT = Field(ge=0, le=100)
POINTS = Field(ge=0.1, le=100)
SHARE = Field(ge=0, le=1)
PROBABILITY = Field(gt=0, lt=1)
POSITIVE = Field(gt=0)
A_SEED = Field(ge=0, lt=2**63)
"""Marks of numbers. `Annotated[int | None, ..., AT_LEAST_ONE]`, in tasks and in commands."""


class StrengthRule(NamedTuple):
    """What a task's `strength` asks for.

    Attributes:
        kind: The calibrated strength of each latent, one number for all, a share of the
            residual's norm, or where a calibration would begin.
        value: Multiple of the calibrated, the number, or the share; 1 for the prior.
    """

    kind: Literal["calibrated", "number", "rms", "prior"]
    value: float


def strength_rule(strength: str | float) -> StrengthRule:
    """Read a task's `strength`.

    Raises:
        ValueError: It is none of its forms, or no strength can have it.
    """
    wrong = (
        "neither 'calibrated' or 'prior', nor a number (60), a multiple of the calibrated (1.5x) "
        "or a share of the residual's norm (0.6rms)"
    )
    if isinstance(strength, bool) or not isinstance(strength, str | int | float):
        raise ValueError(f"it is {wrong}")
    text = str(strength).strip().lower()
    if text in ("calibrated", "prior"):
        return StrengthRule("prior" if text == "prior" else "calibrated", 1.0)
    kind: Literal["calibrated", "number", "rms"] = "number"
    if text.endswith("x"):
        kind = "calibrated"
    elif text.endswith("rms"):
        kind = "rms"
    try:
        number = float(text.removesuffix("x").removesuffix("rms"))
    except ValueError:
        raise ValueError(f"it is {wrong}") from None
    if not 0 < number <= STRONGEST:  # nan is neither
        raise ValueError(
            f"a boost is above 0 and at most {STRONGEST:g}; -T steering=false turns it off"
        )
    return StrengthRule(kind, number)


def _strength(value: Any) -> Any:
    strength_rule(value)
    return value


def _strength_or_replay(value: Any) -> Any:
    return value if value == "replay" else _strength(value)


def _latents(value: Any) -> Any:
    """Indices as a list of numbers; a file's path, or a set's name, as it is."""
    if value is None:
        return None
    if isinstance(value, str) and not set(value) <= set("0123456789,+- \t"):
        return value
    parts = value.split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    indices: list[int] = []
    for part in parts:
        try:
            if isinstance(part, bool) or not isinstance(part, str | int):
                raise ValueError
            indices.append(int(part))
        except ValueError:
            raise ValueError(
                f"'{part}' is no latent's index: it takes indices such as 7,12,40, or one file"
            ) from None
    if not indices:
        raise ValueError("it names no latent")
    if min(indices) < 0:
        raise ValueError(f"there is no latent {min(indices)}")
    twice = sorted({index for index in indices if indices.count(index) > 1})
    if twice:
        raise ValueError(f"it names latent {', '.join(map(str, twice))} more than once")
    return indices


def _names(value: Any) -> Any:
    """Comma-separated names, or a list of them; each once."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError("it takes names, comma-separated")
    for part in parts:
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"'{part}' is no name: it takes names, comma-separated")
    names = [part.strip() for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"it names '{twice[0]}' more than once")
    return names


def _rejoined(value: Any) -> Any:
    """A comma-separated text as it was typed: Inspect makes a list of it."""
    return ",".join(_names(value)) if isinstance(value, list | tuple) else value


def _file_to_read(path: str) -> str:
    given = Path(given_path(path))
    if "://" in path:
        return path
    if given.is_dir():
        raise ValueError("it is a folder, and a file is wanted")
    if not given.is_file():
        raise ValueError("there is no such file")
    return path


# The names that tasks use.
Flag = bool
Count = Annotated[int, A_FEW]
CountOrNone = Annotated[int, A_FEW_OR_NONE]
Whole = Annotated[int, NOT_NEGATIVE]
Number = Annotated[int, AT_LEAST_ONE]
Seed = Annotated[int, A_SEED]
Share = Annotated[float, SHARE]
Positive = Annotated[float, POSITIVE]
Strength = Annotated[str | float, BeforeValidator(_strength)]
StrengthOrReplay = Annotated[str | float, BeforeValidator(_strength_or_replay)]
LatentsArgument = Annotated[str | int | list[int] | None, BeforeValidator(_latents)]
LatentsOrSet = Annotated[str | int | list[int], BeforeValidator(_latents)]
Names = Annotated[str | list[str], BeforeValidator(_names)]
Topics = Annotated[str | list[str] | None, BeforeValidator(_names)]
Sources = Annotated[str, BeforeValidator(_rejoined)]
LogFile = Annotated[str, AfterValidator(_file_to_read)]
PassageFile = Annotated[str, AfterValidator(_file_to_read)]
SplitName = Literal["dev", "fresh", "held_out", "own"]
Prior = dict[str, Any] | None
Method = SearchMethod | None
RuleName = Literal["silent", "separability"]
LayerName = Literal["steering", "feature"]


def checked(task: "Callable[P, Task]") -> "Callable[P, Task]":
    """Hold a task's arguments against its annotations before it does anything.

    Goes below `@task`. Unknown arguments arrive here, too, rather than being left out by Inspect
    with a warning.
    """
    signature = inspect.signature(task)
    rest = inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD, annotation=Any)

    @functools.wraps(task)
    def run(*args: P.args, **kwargs: P.kwargs) -> "Task":
        check_run_options()
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown:
            raise EsrError(
                f"The task {task.__name__} has no argument -T {shown(unknown[0])}=; "
                f"it takes {', '.join(signature.parameters)}."
            )
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise EsrError(f"The task {task.__name__} lacks an argument: {error}.") from None
        return task(**check(task, given, lambda name: f"-T {name}="))  # type: ignore[call-arg]

    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), rest]
    )
    return run


def check(
    function: Callable[..., Any], given: Mapping[str, Any], said: Callable[[str], str]
) -> dict[str, Any]:
    """Hold values against a function's annotations.

    Args:
        function: Whose arguments they are.
        given: The values, by name; a value that is the argument's default is fine.
        said: What an argument is called where the user types it, up to its value.

    Returns:
        The values as the function gets them.

    Raises:
        EsrError: One does not fit.
    """
    adapters, parameters = _adapters(function), inspect.signature(function).parameters
    values = {}
    for name, value in given.items():
        default = parameters[name].default
        if type(value) is type(default) and value == default:
            values[name] = value
            continue
        try:
            values[name] = adapters[name].validate_python(value)
        except ValidationError as error:
            raise EsrError(f"{said(name)}{shown(value)} is refused: {told(error)}.") from None
    return values


@functools.cache
def _adapters(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(function, include_extras=True)
    return {
        name: TypeAdapter(hint, config=STRICT) for name, hint in hints.items() if name != "return"
    }


def told(error: ValidationError) -> str:
    """What pydantic found first, in the middle of a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]["msg"]
    first = first.removeprefix("Value error, ").replace("Input should be", "it should be")
    return first[0].lower() + first[1:]


def shown(value: object) -> str:
    """A value as it may stand in a message: short, and nothing but printable characters."""
    if isinstance(value, list | tuple):
        value = ", ".join(str(part) for part in value)
    text = str(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_choice(latents: str | int | Sequence[int] | None, count: int | None) -> None:
    """Refuse a number of latents to draw beside the very latents.

    Raises:
        EsrError: Both are given.
    """
    if count is not None and isinstance(latents, int | list | tuple):
        raise EsrError(f"latents= names {shown(latents)}: leave out n_latents={count}.")


def check_run_options() -> None:
    """Refuse options of Inspect's own that it takes for something else, or waits on forever.

    Raises:
        EsrError: `inspect eval` was given one of them.
    """
    context = click.get_current_context(silent=True)
    for name in AT_LEAST_1:
        value = context.params.get(name) if context is not None else None
        try:
            wrong = value is not None and not isinstance(value, bool) and float(value) < 1
        except (TypeError, ValueError):  # a range, such as --limit 10-20
            continue
        if wrong:
            raise EsrError(
                f"--{name.replace('_', '-')} {shown(value)} is refused: it should be 1 or more."
            )


AT_LEAST_1 = (
    "max_samples",
    "max_tasks",
    "max_dataset_memory",
    "epochs",
    "limit",
    "message_limit",
    "token_limit",
    "turn_limit",
)
"""Options of `inspect eval` and `inspect eval-set` of which 0 means nothing, or waits forever."""


def _optional(validate: Callable[[T], T]) -> Callable[[T | None], T | None]:
    return lambda value: None if value is None else validate(value)


def _writable(folder: Path) -> None:
    """Try: permissions alone do not tell of a read-only disk, or of who owns the machine."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)} is no folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"nothing can be written into {shown(folder)} ({error.strerror})"
        ) from None


def _file_to_write(path: Path) -> Path:
    if path.is_dir():
        raise ValueError("it is a folder, and a file is wanted")
    if not path.parent.exists():
        raise ValueError(f"there is no folder {shown(path.parent)}: make it first")
    _writable(path.parent)
    return path


def _folder_to_write(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError("it is a file, and a folder is wanted")
    _writable(path)
    return path


def _file(path: Path) -> Path:
    _file_to_read(str(path))
    return path


def _log_folder(value: str) -> str:
    if "://" not in value:
        _folder_to_write(Path(value))
    return value


def _steps(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("it should be 1 or more, or -1 for all epochs")
    return value


def _prices(value: tuple[float, float]) -> tuple[float, float]:
    if min(value) < 0:
        raise ValueError("no price is below 0")
    return value


def _dtype(value: str) -> str:
    if value not in get_args(Dtype):
        raise ValueError(f"it should be one of {', '.join(get_args(Dtype))}")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(DEVICES, value):
        raise ValueError("it should be cpu, mps, cuda, cuda:N, auto, balanced or sequential")
    return value


def _model(value: str) -> str:
    """A name that Inspect knows the provider of; whether it can be reached is seen later."""
    if value == "self":  # the model under test judges itself
        return OWN_JUDGE
    from inspect_ai.model import get_model

    try:
        with aside():
            get_model(value, memoize=False)
    except ValueError as error:
        raise ValueError(shown(error).rstrip(".")) from None
    except Exception:  # a missing key or package: Inspect tells it when the model is needed
        return value
    return value


def _models(values: list[str]) -> list[str]:
    return [_model(value) for value in values]


DEVICES = r"cpu|mps|(cuda|xpu|npu|hpu)(:\d{1,3})?|auto|balanced|balanced_low_0|sequential"
GRADER = AfterValidator(_optional(_model))
GRADERS = AfterValidator(_optional(_models))
DEVICE = AfterValidator(_optional(_device))
DTYPE = AfterValidator(_optional(_dtype))
PRICES = AfterValidator(_optional(_prices))
STEPS = AfterValidator(_steps)
PORT = Field(ge=1, le=65535)
TRAINING_SEED = Field(ge=0, lt=2**32)
FILE_TO_WRITE = AfterValidator(_optional(_file_to_write))
FOLDER_TO_WRITE = AfterValidator(_optional(_folder_to_write))
LOG_FOLDER = AfterValidator(_optional(_log_folder))
FILE_TO_READ = AfterValidator(_optional(_file))
"""Marks of paths, in commands; logs are told of where they are read."""


def with_method(prior: dict[str, Any] | None, method: str | None) -> dict[str, Any] | None:
    """Changes to the prior with the method of the searches, where one was named."""
    return prior if method is None else {**(prior or {}), "method": method}
