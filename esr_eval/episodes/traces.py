"""Answers with every token's activation and region, from a log of esr_eval/activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from inspect_ai.log import EvalLog, EvalSample, read_eval_log, read_eval_log_samples
from inspect_ai.scorer import Score
from numpy.typing import NDArray

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.logs import sidecar
from esr_eval.logs.reading import REGIONS as REGIONS_SCORER
from esr_eval.logs.reading import read_trial, reading

KINDS = ("off_topic", "correction", "on_topic")
"""What a judge tells apart."""

BEFORE = "on_topic_before"
REGIONS = (BEFORE, "off_topic", "correction", "on_topic")
"""What is measured: on-topic text before any drift is no recovery, so it stands apart."""

NOWHERE = ""
"""Kind of a token that lies in no region."""


class Region(NamedTuple):
    """Characters `start` up to `end` (not included) of the response, and what they are."""

    kind: str
    start: int
    end: int


def read_regions(found: Any) -> list[Region]:
    """A judge's regions as a log holds them, in the order of the text.

    Args:
        found: `Score.metadata["regions"]`: a list of kind, start and end.

    Raises:
        EsrError: It is no such list.
    """
    try:
        regions = [Region(str(one["kind"]), int(one["start"]), int(one["end"])) for one in found]
    except (KeyError, TypeError, ValueError) as error:
        raise EsrError(
            f"The log's regions are no list of kind, start and end ({error!r}): score it again "
            "with `inspect score LOG --scorer esr_eval/regions`."
        ) from None
    unknown = {region.kind for region in regions} - set(KINDS)
    if unknown:
        raise EsrError(f"The log has regions of an unknown kind: {', '.join(sorted(unknown))}.")
    return sorted(regions, key=lambda region: region.start)


def measured(regions: Sequence[Region]) -> list[Region]:
    """The same regions, with on-topic text before any drift told apart from that after it.

    The paper's on-topic mean is that of the text after the correction. A response whose text is
    on-topic throughout has nothing but `on_topic_before`.
    """
    told: list[Region] = []
    drifted = False
    for region in regions:
        drifted = drifted or region.kind != "on_topic"
        told.append(region if drifted else region._replace(kind=BEFORE))
    return told


def token_kinds(
    response: str, offsets: NDArray[np.int64], regions: Sequence[Region]
) -> NDArray[np.str_]:
    """Kind of the region that each token stands in, by the token's first visible character.

    A token often carries the space before its word, which still belongs to the region before. The
    tokens that make up one character (an emoji, say) share its offsets, and so its region.

    Args:
        response: The answer.
        offsets: Characters of each token, (tokens, 2): start, and end (not included).
        regions: Of the answer, not overlapping; see `measured`.

    Returns:
        (tokens,), `NOWHERE` for a token outside all regions.
    """
    kinds = np.full(len(offsets), NOWHERE, dtype=f"<U{max(map(len, REGIONS))}")
    for index, (start, end) in enumerate(offsets.tolist()):
        text = response[start:end]
        at = start + len(text) - len(text.lstrip()) if text.strip() else start
        if at >= len(response):
            continue
        for region in regions:
            if region.start <= at < region.end:
                kinds[index] = region.kind
                break
    return kinds


SETS = ("detectors", "backtracking", "boosted")
"""Sets of latents that are read, in the order in which they are shown."""


@dataclass(frozen=True)
class LatentSet:
    """Latents read together.

    Attributes:
        name: Of the set: a published name, a file, or the latents themselves.
        latents: Indices, in the order of the activations.
    """

    name: str
    latents: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Activations over one answer.

    Attributes:
        sample_id: Of the sample in its log.
        trial: What was asked, and under which boost.
        response: The answer.
        activations: By set of latents, float32 (latents, tokens).
        offsets: Characters of each token, (tokens, 2): start, and end (not included).
        regions: Of the answer in characters, as the judge marked them; None without a verdict
            that can be used.
        multi_attempt: Whether the answer was taken for one with several attempts.
        control: Whether it is a steered answer without a restart, read beside those with one.
    """

    sample_id: str
    trial: Trial
    response: str
    activations: dict[str, NDArray[np.float32]]
    offsets: NDArray[np.int64]
    regions: list[Region] | None
    multi_attempt: bool
    control: bool = False

    @property
    def steered(self) -> bool:
        """Whether the boost was on."""
        return self.trial.condition == "steered"

    @property
    def episode(self) -> bool:
        """Whether this is an episode; else it is an answer to compare with."""
        return self.steered and not self.control

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        """Region of each token, (tokens,); empty text where there is none."""
        return token_kinds(self.response, self.offsets, measured(self.regions or []))


OFFSETS = "offsets"
"""Name of the array of the tokens' characters."""


@dataclass(frozen=True)
class TraceLog:
    """The traces of a log, and what could not be used.

    Attributes:
        traces: Episodes and unsteered answers, in the log's order.
        sets: The sets of latents that were read beside the boosted one.
        subject: Whose answers they are.
        judge: Who marked the regions.
        layer: Decoder layer that was read.
        which: Whether episodes are `multi_attempt` answers or `all`.
        errored: Samples that failed, or whose answer was never read.
        missing: Samples whose activations are neither beside the log nor in the cache.
        matched: Controls that have a latent in common with the episode that they stand beside.
    """

    traces: list[Trace]
    sets: dict[str, LatentSet]
    subject: str
    judge: str
    layer: int
    which: str
    errored: int
    missing: int
    matched: int = 0


def read_traces(path: str) -> TraceLog:
    """Read a log's activations and regions.

    Raises:
        EsrError: The file is no log of esr_eval/activations, no activations of it are found, or
            they have changed.
    """
    with reading(path):
        return _read(path)


def _read(path: str) -> TraceLog:
    header = _header(path)
    metadata = header.eval.metadata or {}
    sets = {
        name: LatentSet(str(found["name"]), tuple(found["latents"]))
        for name, found in metadata["latent_sets"].items()
    }
    traces: list[Trace] = []
    judges: dict[str, None] = {}
    errored = missing = 0
    unneeded = {"events", "attachments", "messages"}
    for sample in read_eval_log_samples(path, all_samples_required=False, exclude_fields=unneeded):
        if sample.epoch != 1:
            continue  # An answer read twice is still one answer.
        ref = sample.store.get(sidecar.STORE_KEY)
        if sample.error is not None or ref is None:
            errored += 1
        elif sidecar.find(sidecar.reference(ref, path), path) is None:
            missing += 1
        else:
            score = _score(sample.scores or {})
            traces.append(_trace(path, sample, ref, score, sets))
            judges[str((score.get("judge") if score else None) or metadata["judge"])] = None
    # What never came to run is not among the samples.
    planned = (
        header.results.total_samples // (header.eval.config.epochs or 1) if header.results else 0
    )
    errored += max(0, planned - len(traces) - errored - missing)
    if missing and not traces:
        raise EsrError(
            f"The activations of {path} are missing: copy its folder {sidecar.FOLDER}/ beside it."
        )
    if not traces:
        raise EsrError(
            f"{path} has no answer whose activations were read (status: {header.status})."
        )
    return TraceLog(
        traces=traces,
        sets=sets,
        subject=str(metadata["subject"]),
        judge=", ".join(judges),
        layer=int(metadata["layer"]),
        which=str(metadata["which"]),
        errored=errored,
        missing=missing,
        matched=int(metadata.get("controls_matched", 0)),
    )


def _header(path: str) -> EvalLog:
    header = read_eval_log(path, header_only=True)
    if (header.eval.metadata or {}).get("experiment_id") != "activations":
        raise EsrError(
            f"{path} is no log of esr_eval/activations: make one with `inspect eval "
            f"esr_eval/activations --model esr/NAME -T source={path}`."
        )
    return header


def _trace(
    path: str,
    sample: EvalSample,
    ref: Mapping[str, Any],
    score: Mapping[str, Any] | None,
    sets: Mapping[str, LatentSet],
) -> Trace:
    arrays = sidecar.load(ref, path)
    # One latent was boosted; of the other sets the log says how many latents they have.
    due = {name: len(sets[name].latents) if name in sets else 1 for name in SETS if name in arrays}
    tokens = arrays[OFFSETS].shape[0] if arrays[OFFSETS].ndim else 0
    shapes = {name: (count, tokens) for name, count in due.items()} | {OFFSETS: (tokens, 2)}
    if not due or any(arrays[name].shape != shape for name, shape in shapes.items()):
        raise EsrError(
            f"The activations of sample {sample.id} of {path} are not of its latents and tokens."
        )
    return Trace(
        sample_id=str(sample.id),
        trial=read_trial(path, sample),
        response=sample.output.completion,
        activations={name: arrays[name] for name in SETS if name in arrays},
        offsets=arrays[OFFSETS],
        regions=_regions(score),
        multi_attempt=bool(sample.metadata["has_restart"]),
        control=bool(sample.metadata.get("control", False)),
    )


def _score(scores: Mapping[str, Score]) -> Mapping[str, Any] | None:
    """What the first judge of the log says of an answer's regions."""
    score = next((scores[name] for name in scores if REGIONS_SCORER.fullmatch(name)), None)
    return score.metadata if score else None


def _regions(score: Mapping[str, Any] | None) -> list[Region] | None:
    """None where there is no verdict that can be used."""
    if not score or "regions" not in score or score.get("unscored_because") is not None:
        return None
    return read_regions(score["regions"])
