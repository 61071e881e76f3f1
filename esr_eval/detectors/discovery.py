"""Off-topic detectors from a discovery log: both rules applied, a file written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esr_eval._util.paths import given_path
from esr_eval.dataset import load_latents
from esr_eval.detectors.report import Detector, DetectorReport, Found, write_detector_file
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
from esr_eval.detectors.stored import Discovery, read_discovery
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note, read_only
from esr_eval.spec import Runtime
from esr_eval.subjects import find_subject

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
            "silent": Found(
                detectors=describe(silent(found, *rule)),
                nearest=describe(nearly_silent(found, *rule, NEAREST)),
                expected_by_chance=silent_by_chance(pairs, max_matched, min_mismatched),
            ),
            "separability": Found(
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
