"""Off-topic detectors: a discovery log's activations, both rules applied, the file of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from inspect_ai.log import read_eval_log, read_eval_log_samples
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval._util.paths import given_path
from esr_eval.data.arguments import RuleName
from esr_eval.dataset import load_latents
from esr_eval.detectors.statistics import (
    LatentStatistics,
    Pairs,
    latent_statistics,
    most_separable,
    nearly_silent,
    separable_by_chance,
    silent,
    silent_by_chance,
)
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note, planned_of, read_only, reading, source_of
from esr_eval.logs.sidecar import STORE_KEY, load
from esr_eval.spec import Runtime
from esr_eval.subjects import find_subject

RULES: tuple[RuleName, ...] = get_args(RuleName)


def check_rule(rule: str) -> RuleName:
    """The rule of this name.

    Raises:
        EsrError: There is none.
    """
    for known in RULES:
        if rule == known:
            return known
    raise EsrError(f"rule={rule} is neither silent nor separability.")


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Detector(_Data):
    """A latent and how it behaves on matched and mismatched pairs of task and answer."""

    latent: int = Field(ge=0)
    label: str | None = Field(default=None, description="Where the subject has one.")
    matched_active: float = Field(description="Share of matched pairs with a maximum above 0.")
    mismatched_active: float = Field(description="The same of mismatched pairs.")
    matched_max: float = Field(description="Mean over matched pairs of the maximum.")
    mismatched_max: float = Field(description="The same over mismatched pairs.")
    auc: float = Field(
        description="Chance that a mismatched pair's maximum exceeds a matched one's (ties half)."
    )
    rate: float = Field(description="Share of positions at which it is active, over all pairs.")


class RuleResult(_Data):
    """The latents that one rule finds.

    Were task and answer indifferent to the latents, so that matched and mismatched could change
    places within each pair, as many as `expected_by_chance` would be found all the same.
    """

    detectors: tuple[Detector, ...]
    nearest: tuple[Detector, ...] = Field(
        default=(), description="What came closest without being found, best first."
    )
    expected_by_chance: float = Field(ge=0)


class DetectorReport(_Data):
    """A discovery log's detectors by both rules, with all that decided them."""

    version: Literal[1] = 1
    source: dict[str, str] = Field(description="eval_id, task and model of the discovery log.")
    runtime: Runtime = Field(description="Model and SAE that were read.")
    layer: int = Field(ge=0, description="Decoder layer that was read (the feature layer).")
    n_latents: int = Field(ge=1)
    positions: str = Field(description="all (task and answer) or generated (the answer).")
    pairs: int = Field(ge=1, description="Matched pairs, and as many mismatched ones.")
    missing: int = Field(ge=0, description="Samples of the log that have no reading.")
    min_mismatched: float = Field(description="silent: least share of mismatched pairs.")
    max_matched: float = Field(description="silent: greatest share of matched pairs.")
    top: int = Field(description="separability: how many latents, those of greatest AUC.")
    sets: dict[RuleName, RuleResult]

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for found in self.sets.values():
            for detector in found.detectors:
                if detector.latent >= self.n_latents:
                    raise ValueError(f"latent {detector.latent} of {self.n_latents}")
        return self


def write_detector_file(report: DetectorReport, path: Path) -> None:
    """Keep a report as JSON, to be named as `detectors=` of `ablation`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=1, exclude_none=True) + "\n", "utf-8")


def read_detector_file(path: Path) -> DetectorReport:
    """Read a report back.

    Raises:
        EsrError: The file cannot be read or is no report.
    """
    try:
        return DetectorReport.model_validate(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise EsrError(f"The detector file {path} cannot be read: {error.strerror}.") from error
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise EsrError(
            f"{path} is no detector file ({first}): make one with `esr-eval detectors LOG -o FILE` "
            "from a log of esr_eval/detectors."
        ) from error


ARRAYS = ("matched_max", "mismatched_max", "matched_rate", "mismatched_rate")


class Discovery(NamedTuple):
    """A discovery log's activations, and what was read."""

    pairs: Pairs
    runtime: Runtime
    layer: int
    positions: str
    source: dict[str, str]
    missing: int


def read_discovery(log: str | Path) -> Discovery:
    """Read the activations of a log of esr_eval/detectors.

    Args:
        log: Its location; the arrays lie beside it.

    Raises:
        EsrError: It is no such log, holds no reading, or its arrays are missing or have changed.
    """
    path = given_path(str(log))
    with reading(path):
        return _read(path)


def _read(path: str) -> Discovery:
    header = read_eval_log(path, header_only=True)
    about = header.eval.metadata or {}
    if about.get("experiment_id") != "detectors":
        raise EsrError(f"{path} is no log of esr_eval/detectors: it ran {header.eval.task}.")
    samples = [
        None if sample.error else sample.store.get(STORE_KEY)
        for sample in read_eval_log_samples(path, all_samples_required=False)
    ]
    read = [load(ref, path) for ref in samples if ref is not None]
    if not read:
        raise EsrError(
            f"No sample of {path} has activations (status: {header.status}): finish it with "
            "`inspect eval-retry`."
        )
    if lacking := [name for name in ARRAYS if any(name not in arrays for arrays in read)]:
        raise EsrError(f"The activations of {path} lack {', '.join(lacking)}: run it again.")
    shapes = {arrays[name].shape for arrays in read for name in ARRAYS}
    if len(shapes) > 1 or not all(len(shape) == 1 and shape[0] for shape in shapes):
        raise EsrError(
            f"The activations of {path} are not one number for each latent: run it again."
        )
    try:
        runtime, layer = Runtime.model_validate(about["runtime"]), int(about["layer"])
    except (KeyError, TypeError, ValidationError) as error:
        raise EsrError(f"{path} does not say which model and SAE were read ({error!r}).") from None
    return Discovery(
        pairs=_pairs(read),
        runtime=runtime,
        layer=layer,
        positions=str(about.get("positions", "all")),
        source=source_of(header),
        missing=planned_of(header) - len(read),
    )


def _pairs(read: list[dict[str, NDArray[Any]]]) -> Pairs:
    return Pairs(
        matched_max=np.stack([arrays["matched_max"] for arrays in read]),
        mismatched_max=np.stack([arrays["mismatched_max"] for arrays in read]),
        matched_rate=np.mean([arrays["matched_rate"] for arrays in read], axis=0, dtype=float),
        mismatched_rate=np.mean(
            [arrays["mismatched_rate"] for arrays in read], axis=0, dtype=float
        ),
    )


MIN_MISMATCHED = 0.8
MAX_MATCHED = 0.0
TOP = 25
NEAREST = 10
"""How many latents that came close are named."""


def find_detectors(
    log: str | Path,
    min_mismatched: float = MIN_MISMATCHED,
    max_matched: float = MAX_MATCHED,
    top: int = TOP,
    note: Note = lambda text: None,
) -> DetectorReport:
    """Find off-topic detectors by both rules.

    Args:
        log: A log of esr_eval/detectors, or a folder with one.
        min_mismatched: Least share of mismatched pairs on which a silent detector is active.
        max_matched: Greatest share of matched pairs on which it may be (paper: 0).
        top: How many latents the separability rule takes.
        note: Told of what is left out of a folder.

    Raises:
        EsrError: See `read_discovery`; or a setting is out of range.
    """
    for name, value in (("min_mismatched", min_mismatched), ("max_matched", max_matched)):
        if not 0 <= value <= 1:
            raise EsrError(f"{name}={value} is no share between 0 and 1.")
    if min_mismatched == 0:
        raise EsrError("min_mismatched=0 would call latents detectors that never fire.")
    if top < 1:
        raise EsrError(f"top={top}: take one latent or more.")
    discovery = read_only(given_path(str(log)), read_discovery, note)
    return make_report(discovery, min_mismatched, max_matched, top)


def make_report(
    discovery: Discovery, min_mismatched: float, max_matched: float, top: int
) -> DetectorReport:
    """Apply both rules to a discovery's activations."""
    pairs = discovery.pairs
    found = latent_statistics(pairs)
    describe = _describer(found, pairs, _labels(discovery.runtime))
    rule = (pairs.count, max_matched, min_mismatched)
    separable = most_separable(found, top)
    weakest = float(found.auc[separable[-1]]) if len(separable) else 1.0
    return DetectorReport(
        source=discovery.source,
        runtime=discovery.runtime,
        layer=discovery.layer,
        n_latents=pairs.matched_max.shape[1],
        positions=discovery.positions,
        pairs=pairs.count,
        missing=discovery.missing,
        min_mismatched=min_mismatched,
        max_matched=max_matched,
        top=top,
        sets={
            "silent": RuleResult(
                detectors=describe(silent(found, *rule)),
                nearest=describe(nearly_silent(found, *rule, NEAREST)),
                expected_by_chance=silent_by_chance(pairs, max_matched, min_mismatched),
            ),
            "separability": RuleResult(
                detectors=describe(separable),
                nearest=describe(most_separable(found, top + NEAREST)[top:]),
                expected_by_chance=separable_by_chance(pairs, weakest),
            ),
        },
    )


def on_detectors_done(log: str | Path) -> Path:
    """Write a finished discovery's detectors beside its log, by the paper's settings.

    Returns:
        The file: `detectors_` and the log's name. With the name first, Inspect would take it for
        a log.

    Raises:
        EsrError: See `find_detectors`.
    """
    report = find_detectors(log)
    path = Path(str(log).removeprefix("file://"))
    target = path.with_name(f"detectors_{path.stem}.json")
    write_detector_file(report, target)
    return target


def _labels(runtime: Runtime) -> dict[int, str]:
    """The latents' labels, where the subject ships some for this SAE."""
    try:
        subject = find_subject(runtime.subject)
        if subject.sae != runtime.sae or subject.latents is None:
            return {}
        return {latent.index: latent.label for latent in load_latents(subject)}
    except EsrError:
        return {}


def _describer(
    found: LatentStatistics, pairs: Pairs, labels: dict[int, str]
) -> Callable[[NDArray[np.int64]], tuple[Detector, ...]]:
    def describe(latents: NDArray[np.int64]) -> tuple[Detector, ...]:
        return tuple(
            Detector(
                latent=i,
                label=labels.get(i),
                matched_active=int(found.matched_active[i]) / pairs.count,
                mismatched_active=int(found.mismatched_active[i]) / pairs.count,
                matched_max=float(found.matched_max[i]),
                mismatched_max=float(found.mismatched_max[i]),
                auc=float(found.auc[i]),
                rate=float(pairs.rate[i]),
            )
            for i in latents.tolist()
        )

    return describe
