"""Calibrated strengths on disk, addressed by the digest of everything that decides them.

One JSON file per latent or vector in the user's cache folder, with a digest of its own content. A
file that does not hold what it should is reported and moved aside, never trusted. Subjects may ship
a read-only bundle of records, which is looked up second.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from esr_eval._util.files import folder_digest, write_whole
from esr_eval._util.paths import CACHE_ENV, cache_root
from esr_eval.calibration.bisection import Bisection, Round, Search
from esr_eval.calibration.curve import CurveSearch
from esr_eval.dataset import Latent
from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import RUBRIC_VERSION
from esr_eval.spec import DIGEST, Digested, Runtime, fingerprint
from esr_eval.subjects import CalibrationPrior, embedded_path

logger = logging.getLogger(__name__)


class Setting(BaseModel):
    """Everything that decides a strength, beside the latent or vector itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    prior: CalibrationPrior = Field(description="Prior, effort, target and response length.")
    prompts: str = Field(description="Fingerprint of the tasks' texts, in order.")
    temperature: float
    grader: str = Field(description="Model that judged the responses.")
    rubric: int = Field(description="Version of the grader's instructions.")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="Digests of a local model, SAE, adapter and of vectors: a path stays when its "
        "content changes.",
    )

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        prior: CalibrationPrior,
        grader: str,
        *,
        prompts: Sequence[str],
        temperature: float,
        vectors: str | None = None,
    ) -> Self:
        """The setting for these task texts, under the current rubric.

        Args:
            runtime: What is steered.
            prior: Prior and effort of the search.
            grader: The judge.
            prompts: The tasks' texts.
            temperature: Of the responses.
            vectors: Digest of the file whose vectors are added; None where latents are boosted.
        """
        return cls(
            runtime=runtime,
            prior=prior,
            prompts=fingerprint({"prompts": list(prompts)}),
            temperature=temperature,
            grader=grader,
            rubric=RUBRIC_VERSION,
            files=local_digests(runtime) | ({"vectors": vectors} if vectors else {}),
        )

    def decisive(self) -> dict[str, Any]:
        """What a strength stands or falls with, whatever the way in which it was found."""
        kept = self.model_dump(
            mode="json", include={"runtime", "grader", "rubric", "files"}, context=DIGEST
        )
        del kept["runtime"]["backend"]
        return {**kept, "target": self.prior.target}

    def key(self, latent: int, label: str) -> str:
        """Key of one latent or vector. Its label counts: graders are told what to look for.

        The backend does not: every backend gives the same tokens for the same runtime.
        """
        decides = self.model_dump(mode="json", context=DIGEST, exclude={"runtime": {"backend"}})
        return fingerprint({**decides, "latent": latent, "label": label})


def local_digests(runtime: Runtime) -> dict[str, str]:
    """Digests of the runtime's model, SAE and adapter where they are local folders."""
    folders = {"model": embedded_path(runtime.model)}
    if runtime.sae is not None:
        release = embedded_path(runtime.sae.release)
        inner = release / (runtime.sae.sae_id or "")
        folders["sae"] = inner if inner.is_dir() else release
    if runtime.adapter is not None:
        folders["adapter"] = embedded_path(runtime.adapter)
    return {name: folder_digest(folder) for name, folder in folders.items() if folder.is_dir()}


def runtime_key(runtime: Runtime, **beside: Any) -> str:
    """Key of what is measured on a runtime, the same on every backend.

    Args:
        runtime: What is measured.
        beside: What else decides it, as plain data.
    """
    decides = runtime.model_dump(mode="json", context=DIGEST, exclude={"backend"})
    return fingerprint({**decides, "files": local_digests(runtime), **beside})


class Sealed(Digested):
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


class Checkpoint(Sealed):
    """The state of a search: an interrupted calibration continues from it."""

    seed: int
    search: Bisection | CurveSearch


class StrengthRecord(Sealed):
    """A calibrated strength and how it was found."""

    came_later = ("scale",)

    setting: Setting
    latent: int = Field(ge=0)
    label: str
    strength: float = Field(allow_inf_nan=False, description="Where the search ended.")
    interval: tuple[float, float] = Field(description="5 % and 95 % quantiles of the posterior.")
    achieved_score: float | None = Field(
        description="Mean first-attempt score of fresh responses at the strength."
    )
    check: Round | None = Field(description="Those fresh responses; no part of the search.")
    rounds: tuple[Round, ...]
    generations: int = Field(ge=0, description="Responses generated in all.")
    unscored: int = Field(ge=0, description="Responses not judged, or without attempt.")
    seed: int = Field(description="Seed of tasks and samplers; another one is a replication.")
    scale: float = Field(
        default=1.0, gt=0, description="Strength that is one unit of the prior (see its `unit`)."
    )
    created: str = Field(description="UTC time, ISO 8601.")
    esr_eval: str = Field(description="Version of this package.")

    @classmethod
    def of(
        cls,
        setting: Setting,
        latent: int,
        label: str,
        search: Search,
        *,
        check: Round | None,
        seed: int,
        scale: float = 1.0,
    ) -> Self:
        """The record of a finished search; its strengths are latents' activations, times `scale`.

        Args:
            setting: What decided it.
            latent: Index of the latent or vector.
            label: What it stands for.
            search: The rounds, in units of the prior.
            check: Fresh responses at the final strength.
            seed: Seed of tasks and samplers.
            scale: Strength that is one unit of the prior.
        """
        check = check and check.scaled(scale)
        rounds = (*search.rounds, *([check] if check else []))
        unscored = sum(tested.unscored for tested in rounds)
        return cls(
            key=setting.key(latent, label),
            setting=setting,
            latent=latent,
            label=label,
            strength=search.strength * scale,
            interval=(search.quantile(0.05) * scale, search.quantile(0.95) * scale),
            achieved_score=check.mean if check else None,
            check=check,
            rounds=tuple(tested.scaled(scale) for tested in search.rounds),
            generations=unscored + sum(len(tested.scores) for tested in rounds),
            unscored=unscored,
            seed=seed,
            scale=scale,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            esr_eval=version("esr-eval"),
        ).sealed()

    def unlike(self, setting: Setting, label: str) -> list[str]:
        """In what it was found otherwise than a run would find it, a word each."""
        theirs = self.setting
        same_method = theirs.prior.model_copy(update={"method": setting.prior.method})
        differ = {
            "prior": same_method != setting.prior,
            "method": theirs.prior.method != setting.prior.method,
            "set of tasks": theirs.prompts != setting.prompts,
            "temperature": theirs.temperature != setting.temperature,
            "label": self.label != label,
        }
        return [word for word, differs in differ.items() if differs]

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        if self.key != self.setting.key(self.latent, self.label):
            raise ValueError("the key is not that of the record's setting and latent")
        return self

    def as_markdown(self) -> str:
        """The search as a table, for the log viewer."""
        low, high = self.interval
        lines = [
            f"**Strength {self.strength:.4g}** (90 % of the posterior: {low:.4g} to {high:.4g}; "
            f"method {self.setting.prior.method})",
            "",
            "| round | strength | first-attempt scores | unscored |",
            "|---|---|---|---|",
        ]
        rows = [(str(number), tested) for number, tested in enumerate(self.rounds, 1)]
        if self.check:
            rows.append(("check", self.check))
        for name, tested in rows:
            scores = ", ".join(f"{score:.0f}" for score in tested.scores)
            lines.append(f"| {name} | {tested.strength:.4g} | {scores} | {tested.unscored} |")
        return "\n".join(lines)


def cache_folder() -> Path:
    """Where records are kept."""
    return cache_root() / "strengths"


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
    setting: Setting, latents: Sequence[Latent], bundle: str | Path | None = None
) -> tuple[dict[int, StrengthRecord], list[Latent]]:
    """What is known of these latents' strengths, and which of them have none.

    Args:
        setting: What decides them.
        latents: Latents wanted.
        bundle: `Subject.strengths`, looked up after the cache.
    """
    found: dict[int, StrengthRecord] = {}
    missing: list[Latent] = []
    shipped = load_bundle(bundle) if bundle else {}
    for latent in latents:
        key = setting.key(latent.index, latent.label)
        record = find_strength(key) or shipped.get(key)
        if record is None:
            missing.append(latent)
        else:
            found[latent.index] = record
    return found, missing


def strengths_alike(
    setting: Setting, bundle: str | Path | None = None
) -> dict[int, StrengthRecord]:
    """Strengths of the same runtime, judge and target score that were found in another way.

    The prior is where a search begins, and neither it nor the effort moves the strength that is
    looked for; the label decides little. Of several the latest counts.

    Args:
        setting: What decides the strengths wanted.
        bundle: `Subject.strengths`, looked up after the cache.

    Returns:
        By index of the latent.
    """
    known = list(load_bundle(bundle).values()) if bundle else []
    for path in sorted(cache_folder().glob("*.json")):
        if ".partial." in path.name:
            continue
        with suppress(OSError, ValueError):  # damage is told where this very file is wanted
            known.append(_checked(json.loads(path.read_text("utf-8")), StrengthRecord))
    return {
        record.latent: record
        for record in sorted(known, key=lambda record: record.created)
        if record.setting.decisive() == setting.decisive()
    }


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
            logger.warning("Ignoring damaged record %d of %s: %s", number, path, _reason(error))
    return records


def export_bundle(path: Path, records: Iterable[StrengthRecord]) -> None:
    """Write records as one file that a subject can ship, ordered by latent."""
    ordered = sorted(records, key=lambda record: (record.latent, record.key))
    _write(path, [record.sealed().model_dump(mode="json") for record in ordered])


def _checkpoint_path(key: str) -> Path:
    return cache_folder() / f"{key}.partial.json"


def _checked(data: object, kind: type[S]) -> S:
    """Read plain data as a sealed record.

    Raises:
        ValueError: It is none, or its content is not what its digest says.
    """
    found = kind.model_validate(data)
    if not found.digest:
        raise ValueError("no digest")
    return found


def _reason(error: Exception) -> str:
    """What is wrong with a damaged record, in few words."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)


def _read(path: Path, key: str, kind: type[S]) -> S | None:
    """Read a record; None when there is none, or none that can be trusted.

    A damaged file is reported and moved aside.
    """
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
        logger.warning("Not trusting the damaged file %s (%s): %s", path, _reason(error), done)
        return None
    return found


def _write(path: Path, data: object) -> None:
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
