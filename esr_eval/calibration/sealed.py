"""Records on disk that carry a digest of themselves: written whole, trusted only when intact."""

import json
import logging
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from esr_eval._util.cache import CACHE_ENV
from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError
from esr_eval.spec import DIGEST, fingerprint

logger = logging.getLogger(__name__)


class Sealed(BaseModel):
    """A file's content with a digest of itself, checked on reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    key: str
    digest: str = ""

    def sealed(self) -> Self:
        """The same content with its digest filled in."""
        return self.model_copy(update={"digest": self._digest()})

    @model_validator(mode="after")
    def _intact(self) -> Self:
        if self.digest and self.digest != self._digest():
            raise ValueError("the content does not have the digest that it states")
        return self

    def _digest(self) -> str:
        return fingerprint(self.model_dump(mode="json", context=DIGEST, exclude={"digest"}))


S = TypeVar("S", bound=Sealed)


def checked(data: object, kind: type[S]) -> S:
    """Read plain data as a sealed record.

    Raises:
        ValueError: It is none, or its content is not what its digest says.
    """
    found = kind.model_validate(data)
    if not found.digest:
        raise ValueError("no digest")
    return found


def reason_of(error: Exception) -> str:
    """What is wrong with a damaged record, in few words."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)


def read_sealed(path: Path, key: str, kind: type[S]) -> S | None:
    """Read a record; None when there is none, or none that can be trusted.

    A damaged file is reported and moved aside.
    """
    try:
        found = checked(json.loads(path.read_text("utf-8")), kind)
        if found.key != key:
            raise ValueError("it belongs to another key")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("Cannot read %s: %s", path, error.strerror)
        return None
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
            done = f"moved aside to {aside.name}"
        except OSError:
            done = "left where it is"
        logger.warning("Not trusting the damaged file %s (%s): %s", path, reason_of(error), done)
        return None
    return found


def write_json(path: Path, data: object) -> None:
    """Write the whole file or nothing, so that no reader ever sees half of one.

    Raises:
        EsrError: The folder cannot be written to.
    """
    try:
        write_whole(path, json.dumps(data, indent=1).encode())
    except OSError as error:
        raise EsrError(
            f"Cannot write {path} ({error.strerror}): name a writable folder in {CACHE_ENV}."
        ) from None
