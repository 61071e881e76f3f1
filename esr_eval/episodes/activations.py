"""A log of esr_eval/activations, read back: activations from beside it, regions from its judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log, read_eval_log_samples
from inspect_ai.scorer import Score

from esr_eval.episodes.region_tokens import Region, read_regions
from esr_eval.episodes.traces import SETS, LatentSet, Trace
from esr_eval.errors import EsrError
from esr_eval.logs import sidecar
from esr_eval.logs.reading import REGIONS, read_trial, reading

OFFSETS = "offsets"
"""Name of the array of the tokens' characters, as `esr_eval.episodes.reading` writes it."""


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
    """

    traces: list[Trace]
    sets: dict[str, LatentSet]
    subject: str
    judge: str
    layer: int
    which: str
    errored: int
    missing: int


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
    )


def _score(scores: Mapping[str, Score]) -> Mapping[str, Any] | None:
    """What the first judge of the log says of an answer's regions."""
    score = next((scores[name] for name in scores if REGIONS.fullmatch(name)), None)
    return score.metadata if score else None


def _regions(score: Mapping[str, Any] | None) -> list[Region] | None:
    """None where there is no verdict that can be used."""
    if not score or "regions" not in score or score.get("unscored_because") is not None:
        return None
    return read_regions(score["regions"])
