"""Recompute a log's metrics from its raw scores: `python scripts/recompute.py LOG...`.

Independent of the package and of Inspect: it reads the .eval file (a zip of JSON) itself, averages
every key of the scores of `esr_eval/attempts` and `esr_eval/improvement` over the trials in which
it is defined, and compares with the results in the log, to the last digit. Trials of several
epochs are averaged sample by sample first, as Inspect does. Before that it derives what rests on
the attempts and restarts of a score (`multi_attempt`, `confirmed`, `esr`, `esr_margin`,
`recovered`) from these, trial by trial, and the estimate of all restarts from the three counts; its
interval, which needs Student's t, it leaves alone. Exit status 1 on any difference.

Inspect compresses with zstd, which Python's zipfile knows from 3.14 on; before, `zipfile_zstd`
(which Inspect itself brings along) teaches it that and nothing else.
"""

import contextlib
import json
import math
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

with contextlib.suppress(ImportError):
    import zipfile_zstd  # type: ignore[import-untyped]  # noqa: F401

SCORER = re.compile(r"(?:.*/)?(?:attempts|improvement)\d*")
COUNTED = ("unscored", "errored")
NEAR = 200
"""Characters between an attempt's beginning and the restart that confirms it."""
ONE_DETECTOR = ("esr-judge/offline",)
"""Judges that split by the phrase detector, for which there is no estimate."""


def read(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The log's header and all its samples."""
    with zipfile.ZipFile(path) as log:
        # A log that was written to again holds older versions of its members under the same name.
        names = dict.fromkeys(name for name in log.namelist() if name.startswith("samples/"))
        return json.loads(log.read("header.json")), [json.loads(log.read(name)) for name in names]


def mean_of(
    samples: list[dict[str, Any]],
    scorer: str,
    key: str,
    group: tuple[str, str] | None,
    count: bool = False,
) -> tuple[int, float]:
    """Trials in which a key is defined, and its mean over the samples, or their number."""
    epochs: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if group is not None and str(sample["metadata"].get(group[0])) != group[1]:
            continue
        score = (sample.get("scores") or {}).get(scorer.rpartition("/")[2])
        value = score["value"].get(key) if score else None
        if value is not None and not math.isnan(value):
            epochs[str(sample["id"])].append(float(value))
    means = [math.fsum(values) / len(values) for values in epochs.values()]
    mean = math.fsum(means) / len(means) if means else math.nan
    return sum(map(len, epochs.values())), math.fsum(means) if count else mean


class Stored(NamedTuple):
    """A mean, or a number of samples, that a log has of a key."""

    key: str
    value: float | None
    group: tuple[str, str] | None = None
    is_count: bool = False


def stored_results(score: dict[str, Any]) -> Iterator[Stored]:
    """What a log has of all trials, or of groups by a field of the trial; before 0.2 key by key."""
    for metric in score["metrics"].values():
        params, value = metric.get("params") or {}, metric["value"]
        if metric.get("group") == "headlines":
            key, _, level = metric["name"].partition(" ")
            counts = params.get("counts", COUNTED)
            if key in (*params["means"], *counts):
                group = (params["by"], level.removeprefix(f"{params['by']} ")) if level else None
                yield Stored(key, value, group, key in counts)
        elif metric["name"] == "mean" and "group_key" not in params:
            yield Stored(score["name"], value)
        elif params.get("metric", {}).get("name", "").rpartition("/")[2] == "mean":
            yield Stored(score["name"], value, (params["group_key"], metric["name"]))


def derived(score: dict[str, Any]) -> dict[str, float]:
    """What a trial's attempts and restarts say; nothing for scores of before the margin."""
    about = score.get("metadata") or {}
    attempts = about.get("attempts") or []
    if "margin" not in about or not attempts:
        return {}
    first, last, multi = attempts[0]["score"], attempts[-1]["score"], len(attempts) > 1
    numbers = {
        "multi_attempt": multi,
        "confirmed": any(
            restart["start"] - NEAR <= attempt["start"] <= restart["end"] + NEAR
            for attempt in attempts[1:]
            for restart in about["restarts"]
        ),
        "esr": multi and last > first,
        "esr_margin": multi and last - first >= about["margin"],
        "recovered": multi and first < about["recovery"] <= last,
    }
    return {key: float(value) for key, value in numbers.items()}


def own_scores(samples: list[dict[str, Any]], scorer: str) -> Iterator[dict[str, Any]]:
    """The scores that a scorer gave, in the order of the samples and their epochs."""
    name = scorer.rpartition("/")[2]
    for sample in samples:
        if name in (sample.get("scores") or {}):
            yield sample["scores"][name]


def contradictions(samples: list[dict[str, Any]], scorer: str) -> int:
    """Print how many trials' values follow from their attempts; the number that do not."""
    known = [(score["value"], derived(score)) for score in own_scores(samples, scorer)]
    known = [(value, numbers) for value, numbers in known if numbers]
    wrong = sum(
        value.get(key) != number for value, numbers in known for key, number in numbers.items()
    )
    if known:
        said = f"DIFFERENT in {wrong} values" if wrong else "equal"
        told(f"  {scorer}: values derived from the attempts of {len(known)} trials: {said}")
    return wrong


def all_restarts(samples: list[dict[str, Any]], scorer: str) -> float:
    """Chapman's estimate of the share of trials with a restart; NaN where there is none."""
    trials: dict[str, dict[str, Any]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["epoch"])):
        for score in own_scores([sample], scorer):
            value = score["value"].get("confirmed")
            known = value is not None and not math.isnan(value)
            if known and score["metadata"]["judge"] not in ONE_DETECTOR:
                # Of several epochs the first.
                trials.setdefault(str(sample["id"]), score)
    judge = sum(len(score["metadata"]["attempts"]) > 1 for score in trials.values())
    phrases = sum(bool(score["metadata"]["restarts"]) for score in trials.values())
    both = sum(derived(score)["confirmed"] == 1 for score in trials.values())
    if not both:
        return math.nan
    return min(1.0, ((judge + 1) * (phrases + 1) / (both + 1) - 1) / len(trials))


def estimate_differs(samples: list[dict[str, Any]], score: dict[str, Any]) -> int:
    """Print the estimate of all restarts beside the log's own; 1 where they differ."""
    stored = [
        metric["value"]
        for name, metric in score["metrics"].items()
        if name.rpartition("/")[2] == "all_restarts_share"
    ]
    if not stored:
        return 0
    value = all_restarts(samples, score["scorer"])
    given = math.nan if stored[0] is None else stored[0]
    same = math.isclose(value, given, rel_tol=1e-12) or (math.isnan(value) and math.isnan(given))
    said = "equal" if same else f"DIFFERENT: the log says {given!r}"
    told(f"  {score['scorer'] + '/all_restarts':32} {value!r:28} {said}")
    return int(not same)


def recompute(path: str) -> int:
    """Print every mean of a log beside its own result; the number of differences."""
    try:
        header, samples = read(path)
        return compared_with(path, header, samples)
    except (OSError, zipfile.BadZipFile, LookupError, TypeError, ValueError, AttributeError) as why:
        told(f"{path}: no log of this project ({type(why).__name__})")
        return 1


def told(text: str) -> None:
    """Print what a log or a path holds; characters that a terminal would obey are spelled out."""
    print("".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text))


def compared_with(path: str, header: dict[str, Any], samples: list[dict[str, Any]]) -> int:
    """Print the means of an opened log; the number of differences."""
    failed = sum(bool(sample.get("error")) for sample in samples)
    told(f"{path}\n{len(samples)} trials, {failed} with an error; status {header['status']}")
    wrong = compared = amiss = 0
    for scorer in dict.fromkeys(
        score["scorer"] for score in (header.get("results") or {}).get("scores", [])
    ):
        if SCORER.fullmatch(scorer):
            amiss += contradictions(samples, scorer)
    for score in (header.get("results") or {}).get("scores", []):
        if not SCORER.fullmatch(score["scorer"]):
            continue
        amiss += estimate_differs(samples, score)
        for key, stored, group, is_count in stored_results(score):
            n, mean = mean_of(samples, score["scorer"], key, group, is_count)
            # Inspect has NaN, or 0, for the mean of nothing.
            same = mean == stored if n else stored is None or math.isnan(stored) or stored == 0
            if n and not same and stored is not None and abs(mean - stored) <= math.ulp(mean):
                same, said = True, "equal but for the last rounding"
            else:
                said = "equal" if same else f"DIFFERENT: the log says {stored!r}"
            compared += 1
            wrong += not same
            where = f" {group[0]}={group[1]}" if group else ""
            name = f"{score['scorer']}/{key}{where}"
            trials = round(mean_of(samples, score["scorer"], key, group)[1] * n) if n else 0
            count = f" = {trials} trials" if key in COUNTED and n else ""
            told(f"  {name:32} n={n:<5} {mean!r:20} {said}{count}")
    print(f"  {compared - wrong} of {compared} equal" if compared else "  no mean of ours in it")
    return wrong + amiss if compared else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(min(1, sum(map(recompute, sys.argv[1:]))))
