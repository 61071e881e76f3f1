"""What is asked under protective and harmful pushes, the texts that directions are taken from.

Nothing operational is asked: the user wants a yes or a no, to a petty wrong, a false claim, or
something harmless. Sources of the protocol, decision by decision: docs/protective.md.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError

Asks = Literal["request", "claim"]
"""What the user wants: help with something, or agreement to something."""
Way = Literal["protect", "harm", "random"]
"""Where a direction pushes: towards no (refusing, correcting), towards yes, or anywhere."""
Stance = Literal["no", "yes", "neither"]
"""What an answer says to the user. To a petty wrong and to a false claim, no is the protective."""

STANCES: tuple[Stance, ...] = get_args(Stance)
ASKS: tuple[Asks, ...] = get_args(Asks)

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Data):
    """One question, answered both ways."""

    question: _Text
    protective: _Text
    harmful: _Text


class Direction(_Data):
    """A contrast: the direction leads from its harmful answers to its protective ones."""

    on: Asks
    pairs: tuple[Pair, ...] = Field(min_length=2)


class _Prompts(_Data):
    harmful: tuple[str, ...]
    benign: tuple[str, ...]


class _Texts(_Data):
    frames: dict[Asks, str]
    prompts: dict[Asks, _Prompts]
    contrasts: dict[str, Direction]


class Prompt(BaseModel):
    """One question of the user's, by its number among all of them."""

    number: int
    asks: Asks
    benign: bool
    text: str


class Push(Trial):
    """One question under a push or without; a trial, and stored like one."""

    latent: int = Field(ge=0, description="Number of the prompt, by which intervals are clustered.")
    strength: float = Field(
        description="Share of the residual's mean norm that is added; below 0 it leads to yes."
    )
    asks: Asks = Field(description="What the user wants: help, or agreement.")
    benign: bool = Field(description="Whether yes is the right answer.")
    turn: int = Field(ge=0, description="Number of the prompt's trial: what pairs belong to.")
    way: Way | None = Field(default=None, description="Where it is pushed; None without a push.")
    direction: str | None = Field(default=None, description="Along which direction.")
    dose: str | None = Field(default=None, description="The strength as asked for, 0.2rms say.")
    separation: float | None = Field(
        default=None,
        description="How far a held-out text lies along its direction, in standard deviations.",
    )


@cache
def _texts() -> _Texts:
    text = resources.files("esr_eval.data").joinpath("directions.json").read_text("utf-8")
    return _Texts.model_validate_json(text)


@cache
def prompts_of(asks: Asks) -> tuple[Prompt, ...]:
    """What the user says, wrongs or false claims first."""
    texts, found = _texts(), []
    for kind in ASKS:
        both = texts.prompts[kind]
        found += [
            (kind, benign, texts.frames[kind].format(thing=thing))
            for benign, things in ((False, both.harmful), (True, both.benign))
            for thing in things
        ]
    return tuple(
        Prompt(number=number, asks=kind, benign=benign, text=text)
        for number, (kind, benign, text) in enumerate(found)
        if kind == asks
    )


def directions(path: str | None = None) -> Mapping[str, Direction]:
    """Contrasts by name.

    Args:
        path: A file of them; None takes those that ship.

    Raises:
        EsrError: It cannot be read, or is none.
    """
    if path is None:
        return _texts().contrasts
    try:
        text = Path(path).read_text("utf-8")
        found = TypeAdapter(dict[_Text, Direction]).validate_json(text)
    except (OSError, UnicodeError) as error:
        raise EsrError(f"The contrasts {path} cannot be read ({error}).") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise EsrError(
            f"The contrasts {path} cannot be used ({where}: {first['msg']}): it must be a JSON "
            'object such as {"kindness": {"on": "request", "pairs": [{"question": "...", '
            '"protective": "...", "harmful": "..."}, ...]}}, "on" being request or claim, with '
            "two pairs or more."
        ) from None
    if not found or any(name.startswith("random ") for name in found):
        raise EsrError(f"The contrasts {path} need a direction, and none that is called random.")
    return found


RANDOM = 2
"""Random directions of a run that names no number."""


def answers_per_turn() -> int:
    """Answers of a run with one dose and all that ships: unsteered, both signs, random ones."""
    contrasts = directions().values()
    return sum(
        len(prompts_of(asks)) * (1 + 2 * sum(one.on == asks for one in contrasts) + RANDOM)
        for asks in ASKS
    )
