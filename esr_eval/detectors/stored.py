"""A discovery log's activations over matched and mismatched pairs, read for analysis."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from inspect_ai.log import read_eval_log, read_eval_log_samples
from numpy.typing import NDArray
from pydantic import ValidationError

from esr_eval._util.paths import given_path
from esr_eval.detectors.statistics import Pairs
from esr_eval.errors import EsrError
from esr_eval.logs.reading import planned_of, reading, source_of
from esr_eval.logs.sidecar import STORE_KEY, load
from esr_eval.spec import Runtime

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
