"""Cache of calibrated strengths, addressed by the digest of everything that decides them.

One JSON file per latent in the user's cache folder. A file that does not hold what it should is
reported and moved aside, never trusted. Subjects may ship a read-only bundle of records, which is
looked up second.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from esr_eval._util.cache import cache_root
from esr_eval.calibration.record import Checkpoint, Setting, StrengthRecord
from esr_eval.calibration.sealed import checked, read_sealed, reason_of, write_json
from esr_eval.errors import EsrError
from esr_eval.subjects import CalibrationPrior, Subject, embedded_path

logger = logging.getLogger(__name__)


class LabelledLatent(Protocol):
    """The part of `esr_eval.dataset.Latent` that matters here."""

    @property
    def index(self) -> int:
        """Index in the SAE."""

    @property
    def label(self) -> str:
        """What it stands for."""


L = TypeVar("L", bound=LabelledLatent)


def cache_folder() -> Path:
    """Where records are kept."""
    return cache_root() / "strengths"


def save(record: StrengthRecord) -> Path:
    """Keep a record; the checkpoint of its search is not needed any more."""
    path = cache_folder() / f"{record.key}.json"
    write_json(path, record.sealed().model_dump(mode="json"))
    _checkpoint_path(record.key).unlink(missing_ok=True)
    return path


def save_checkpoint(checkpoint: Checkpoint) -> None:
    """Keep the state of a search that is under way."""
    write_json(_checkpoint_path(checkpoint.key), checkpoint.sealed().model_dump(mode="json"))


def find_checkpoint(key: str, seed: int) -> Checkpoint | None:
    """The state in which a search with this key and seed was interrupted."""
    found = read_sealed(_checkpoint_path(key), key, Checkpoint)
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
    found = read_sealed(cache_folder() / f"{key}.json", key, StrengthRecord)
    return found or (load_bundle(bundle).get(key) if bundle else None)


def calibrated_strengths(
    setting: Setting, latents: Sequence[L], bundle: str | Path | None = None
) -> tuple[dict[int, StrengthRecord], list[L]]:
    """What is known of these latents' strengths, and which of them have none.

    Args:
        setting: What decides them.
        latents: Latents wanted.
        bundle: `Subject.strengths`, looked up after the cache.
    """
    found: dict[int, StrengthRecord] = {}
    missing: list[L] = []
    for latent in latents:
        record = find_strength(setting.key(latent.index, latent.label), bundle)
        if record is None:
            missing.append(latent)
        else:
            found[latent.index] = record
    return found, missing


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


CHECK_SAMPLES = 5
"""Fresh responses at the final strength, to state the score that it achieves."""


def responses_per_latent(subject: Subject) -> int:
    """Responses that finding one latent's strength takes: the search's, and the check's.

    A round in which nothing could be judged is repeated and comes on top.
    """
    prior = calibration_prior(subject)
    return prior.rounds * prior.samples_per_round + CHECK_SAMPLES


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
            record = checked(entry, StrengthRecord)
            records[record.key] = record
        except ValueError as error:
            logger.warning("Ignoring damaged record %d of %s: %s", number, path, reason_of(error))
    return records


def export_bundle(path: Path, records: Iterable[StrengthRecord]) -> None:
    """Write records as one file that a subject can ship, ordered by latent."""
    ordered = sorted(records, key=lambda record: (record.latent, record.key))
    write_json(path, [record.sealed().model_dump(mode="json") for record in ordered])


def _checkpoint_path(key: str) -> Path:
    return cache_folder() / f"{key}.partial.json"
