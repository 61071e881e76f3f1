"""Cache of calibrated strengths, addressed by the digest of everything that decides them.

One JSON file per latent in the user's cache folder. A file that does not hold what it should is
reported and moved aside, never trusted. Subjects may ship a read-only bundle of records, which is
looked up second.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from platformdirs import user_cache_path
from pydantic import ValidationError

from esr_eval.errors import EsrError
from esr_eval.spec import Runtime
from esr_eval.strength_record import Checkpoint, Sealed, Setting, StrengthRecord
from esr_eval.subjects import CalibrationPrior, Subject, embedded_path

logger = logging.getLogger(__name__)

CACHE_ENV = "ESR_EVAL_CACHE"
"""Environment variable that names another cache folder than the user's usual one."""


class LabelledLatent(Protocol):
    """The part of `esr_eval.dataset.Latent` that matters here."""

    index: int
    label: str


L = TypeVar("L", bound=LabelledLatent)
S = TypeVar("S", bound=Sealed)


def cache_folder() -> Path:
    """Where records are kept."""
    root = os.environ.get(CACHE_ENV)
    return (Path(root) if root else user_cache_path("esr-eval")) / "strengths"


def save(record: StrengthRecord) -> Path:
    """Keep a record; the checkpoint of its search is not needed any more."""
    path = cache_folder() / f"{record.key}.json"
    _write(path, record.sealed().model_dump(mode="json"))
    _checkpoint_path(record.key).unlink(missing_ok=True)
    return path


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Keep the state of a search that is under way."""
    _write(_checkpoint_path(checkpoint.key), checkpoint.sealed().model_dump(mode="json"))


def find_checkpoint(key: str, seed: int) -> Checkpoint | None:
    """The state in which a search with this key and seed was interrupted."""
    found = _read(_checkpoint_path(key), key, Checkpoint)
    return found if found is not None and found.seed == seed else None


def drop_checkpoint(key: str) -> None:
    """Forget a search that was under way."""
    _checkpoint_path(key).unlink(missing_ok=True)


def find_strength(key: str, bundle: str | Path | None = None) -> StrengthRecord | None:
    """The record with this key: from the cache, else from a subject's bundle.

    Args:
        key: Made by `Setting.key`.
        bundle: `Subject.strengths`, or the path of an exported bundle.
    """
    found = _read(cache_folder() / f"{key}.json", key, StrengthRecord)
    return found or (load_bundle(bundle).get(key) if bundle else None)


def calibrated_strengths(
    runtime: Runtime,
    latents: Sequence[L],
    prior: CalibrationPrior,
    grader: str,
    *,
    prompts: Sequence[str],
    temperature: float,
    bundle: str | Path | None = None,
) -> tuple[dict[int, StrengthRecord], list[L]]:
    """What is known of these latents' strengths, and which of them have none.

    Args:
        runtime: The model under test as it runs.
        latents: Latents wanted.
        prior: Prior and effort of the calibration.
        grader: Name of the grader.
        prompts: Texts of the tasks that the calibration draws from.
        temperature: Sampling temperature of the responses.
        bundle: `Subject.strengths`, looked up after the cache.
    """
    setting = Setting.of(runtime, prior, grader, prompts=prompts, temperature=temperature)
    found: dict[int, StrengthRecord] = {}
    missing: list[L] = []
    for latent in latents:
        record = find_strength(setting.key(latent.index, latent.label), bundle)
        if record is None:
            missing.append(latent)
        else:
            found[latent.index] = record
    return found, missing


def missing_message(missing: Sequence[LabelledLatent], total: int, subject: str) -> str:
    """One sentence for the user whose latents have no calibrated strength."""
    return (
        f"{len(missing)} of {total} latents have no calibrated strength with these settings: run "
        f"`esr-eval calibrate {subject}` first, or pass -T strength=NUMBER."
    )


def calibration_prior(
    subject: Subject, changes: Mapping[str, Any] | None = None
) -> CalibrationPrior:
    """The subject's prior with changes; a custom subject has none and needs all its fields.

    Raises:
        EsrError: A field is missing or has no valid value.
    """
    fields = subject.calibration.model_dump() if subject.calibration else {}
    try:
        return CalibrationPrior.model_validate({**fields, **(changes or {})})
    except ValidationError as error:
        wrong = ", ".join(str(part["loc"][0]) for part in error.errors())
        raise EsrError(
            f"The calibration prior of {subject.name} is incomplete or invalid ({wrong}): pass "
            'for example -T prior=\'{"prior_mean": 10, "prior_std": 10, "lower": 0, "upper": 50}\'.'
        ) from None


def load_bundle(reference: str | Path) -> dict[str, StrengthRecord]:
    """Records of a bundle by key; damaged ones are reported and left out."""
    path = embedded_path(str(reference))
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text("utf-8"))
        if not isinstance(entries, list):
            raise ValueError("not a list of records")
    except (OSError, ValueError) as error:
        logger.warning("Ignoring the damaged bundle of strengths %s: %s", path, error)
        return {}
    records = {}
    for number, entry in enumerate(entries):
        try:
            record = _checked(entry, StrengthRecord)
            records[record.key] = record
        except ValueError as error:
            logger.warning("Ignoring damaged record %d of %s: %s", number, path, _first(error))
    return records


def export_bundle(path: Path, records: Iterable[StrengthRecord]) -> None:
    """Write records as one file that a subject can ship, ordered by latent."""
    ordered = sorted(records, key=lambda record: (record.latent, record.key))
    _write(path, [record.sealed().model_dump(mode="json") for record in ordered])


def _checkpoint_path(key: str) -> Path:
    return cache_folder() / f"{key}.partial.json"


def _checked(data: object, kind: type[S]) -> S:
    found = kind.model_validate(data)
    if not found.digest:
        raise ValueError("no digest")
    return found


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)


def _read(path: Path, key: str, kind: type[S]) -> S | None:
    try:
        found = _checked(json.loads(path.read_text("utf-8")), kind)
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
        logger.warning("Not trusting the damaged file %s (%s): %s", path, _first(error), done)
        return None
    return found


def _write(path: Path, data: object) -> None:
    """Write the whole file or nothing, so that no reader ever sees half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two processes never write to the same unfinished file.
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with unfinished.open("x", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise EsrError(
            f"Cannot write {path} ({error.strerror}): name a writable folder in {CACHE_ENV}."
        ) from None
