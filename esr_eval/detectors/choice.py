"""Sets of latents by source: a detector file, a discovery log, a published name, or indices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from esr_eval._util.paths import given_path
from esr_eval.data.arguments import RuleName
from esr_eval.detectors.discovery import (
    Detector,
    DetectorReport,
    RuleResult,
    check_rule,
    find_detectors,
    read_detector_file,
)
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime, SAERef


@dataclass(frozen=True)
class DetectorSet:
    """Latents of one SAE that are ablated or read together.

    Attributes:
        name: Short, for labels: paper_26, silent_12.
        latents: Indices in the SAE, ascending.
        source: Where they come from, for the log's metadata.
        statistics: How each behaved in the discovery; empty for published or given ones.
    """

    name: str
    latents: tuple[int, ...]
    source: dict[str, Any] = field(default_factory=dict)
    statistics: tuple[Detector, ...] = ()


@cache
def _published() -> dict[str, Any]:
    text = resources.files("esr_eval.data").joinpath("detectors.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published_sets() -> dict[str, str]:
    """Names of the published sets, and what each is."""
    return {name: str(entry["about"]) for name, entry in _published()["sets"].items()}


def load_detectors(
    source: str | int | Sequence[int], runtime: Runtime, rule: str = "silent"
) -> DetectorSet:
    """Find a set of latents.

    Args:
        source: A detector file (JSON), a log of esr_eval/detectors, the name of a published set,
            or indices (`7,12,40`).
        runtime: Whose SAE they must belong to.
        rule: Which of a file's or log's sets: `silent` or `separability`.

    Raises:
        EsrError: There is no such set, it is of another SAE, or it is empty.
    """
    wanted = check_rule(rule)
    if isinstance(source, str) and source in published_sets():
        return _published_set(source, runtime)
    given = _indices(source)
    if given is not None:
        return DetectorSet(f"given_{len(given)}", given, {"given": "as indices"})
    place = given_path(str(source))
    path = Path(place)
    if not path.is_file() and "://" not in str(source):
        raise EsrError(
            f"There is no detector file, log or published set '{source}'; published for "
            f"{_published()['subject']} are {', '.join(published_sets())}."
        )
    return _from_report(_report(path, place), runtime, wanted, str(source))


def _published_set(name: str, runtime: Runtime) -> DetectorSet:
    published = _published()
    sae = SAERef.model_validate(published["sae"])
    known = runtime.sae == sae or (
        runtime.sae is not None and runtime.sae.release in published["also_known_as"]
    )
    if not known:
        raise EsrError(
            f"{name} are latents of the SAE of {published['subject']} ({sae.release}), not of "
            f"{_sae_name(runtime)}: find this SAE's detectors with esr_eval/detectors and pass "
            "its log as -T detectors=LOG."
        )
    about = {"published": name, "paper": published["paper"]}
    return DetectorSet(name, tuple(sorted(published["sets"][name]["latents"])), about)


def _indices(source: str | int | Sequence[int]) -> tuple[int, ...] | None:
    parts = [source] if isinstance(source, int) else source
    if isinstance(parts, str):
        parts = parts.split(",")  # type: ignore[assignment]
    try:
        found = sorted({int(part) for part in parts})
    except ValueError:
        return None
    if not found or found[0] < 0:
        raise EsrError(f"detectors={source} is no list of latents' indices such as 7,12,40.")
    return tuple(found)


def _report(path: Path, source: str) -> DetectorReport:
    if path.suffix.lower() == ".json" and not _is_json_log(path):
        return read_detector_file(path)
    return find_detectors(source)


def _is_json_log(path: Path) -> bool:
    """Whether the file is one of Inspect's logs in its JSON format."""
    try:
        return {"eval", "plan"} <= set(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def _from_report(
    report: DetectorReport, runtime: Runtime, rule: RuleName, source: str
) -> DetectorSet:
    if report.runtime.sae != runtime.sae:
        raise EsrError(
            f"The detectors in {source} are latents of {_sae_name(report.runtime)}, but the model "
            f"under test has {_sae_name(runtime)}: find its own with esr_eval/detectors."
        )
    found = report.sets.get(rule)
    if found is None or not found.detectors:
        raise EsrError(f"{source} holds no {rule} detectors{_way_out(report, rule, found)}")
    detectors = tuple(sorted(found.detectors, key=lambda one: one.latent))
    return DetectorSet(
        name=f"{rule}_{len(detectors)}",
        latents=tuple(one.latent for one in detectors),
        source={
            **report.source,
            "rule": rule,
            "pairs": report.pairs,
            "min_mismatched": report.min_mismatched,
            "max_matched": report.max_matched,
            "expected_by_chance": found.expected_by_chance,
        },
        statistics=detectors,
    )


def _way_out(report: DetectorReport, rule: RuleName, found: RuleResult | None) -> str:
    said = "."
    if found is not None and found.nearest:
        best = found.nearest[0]
        said = (
            f" (nearest: latent {best.latent}, active on {best.matched_active:.0%} of matched and "
            f"{best.mismatched_active:.0%} of mismatched pairs)."
        )
    other = next((name for name in report.sets if name != rule), None)
    if other is not None and report.sets[other].detectors:
        said += f" Take the other set with -T rule={other}, or relax the rule with"
    else:
        said += " Relax the rule with"
    return f"{said} `esr-eval detectors LOG --min-mismatched 0.6 --max-matched 0.1 -o FILE`."


def _sae_name(runtime: Runtime) -> str:
    if runtime.sae is None:
        return "no SAE"
    return " / ".join(part for part in (runtime.sae.release, runtime.sae.sae_id) if part)
