"""What sections are made from: conditions, and each against the main run, trial by trial."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import pandas as pd

from esr_eval.episodes.traces import TraceLog, read_traces
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, shared_trials
from esr_eval.logs.measures import HOLISTIC, TITLES
from esr_eval.logs.stored import StoredLog, without_place
from esr_eval.report.section import (
    NONE,
    Section,
    Table,
    certainty,
    count,
    p_value,
    points,
    with_interval,
)
from esr_eval.stats.comparisons import PairedComparison, compare_pairs, holm
from esr_eval.stats.means import Difference, mean_difference
from esr_eval.text import one_line

T = TypeVar("T")
RATES = ("multi_attempt", "esr", "restart_phrase", f"{HOLISTIC}improving")
SCORES = ("first_score", f"{HOLISTIC}improvement")


@dataclass(frozen=True)
class Compared:
    """One number of a condition against the main run's, trial by trial.

    Attributes:
        condition: The condition.
        main: The main run that it is compared with: same subject, same judge.
        metric: Which number.
        pairs: Trials that have it in both.
        clusters: Latents these belong to.
        rate: Of rates, the comparison: condition against main.
        score: Of scores, the difference: condition minus main.
        holm: The p value after Holm's correction over everything compared with that main run.
    """

    condition: Condition
    main: Condition
    metric: str
    pairs: int
    clusters: int
    rate: PairedComparison | None = None
    score: Difference | None = None
    holm: float | None = None

    @property
    def p_value(self) -> float | None:
        """Of no difference, before the correction."""
        if self.rate is not None:
            return self.rate.p_value
        return self.score.p_value if self.score is not None else None


@dataclass(frozen=True)
class Evidence:
    """All that sections are made from: the logs, their conditions, and how these compare."""

    logs: list[StoredLog]
    conditions: list[Condition]
    compared: list[Compared]

    @cached_property
    def traces(self) -> tuple[list[tuple[StoredLog, TraceLog]], list[str]]:
        """Activations by log, read once; and of the others, why they cannot be used."""
        problems: list[str] = []
        return list(usable(self.logs_of("activations"), read_traces, problems)), problems

    def of(self, *experiments: str) -> list[Condition]:
        """The conditions of some experiments."""
        return [
            one for one in self.conditions if one.experiment and one.experiment.id in experiments
        ]

    def logs_of(self, experiment: str) -> list[StoredLog]:
        """The logs of an experiment, those without trials among them."""
        return [log for log in self.logs if log.experiment and log.experiment.id == experiment]


def run_names(logs: Sequence[StoredLog]) -> list[str]:
    """What tables call the logs of one experiment: subject and condition, numbered if several."""
    several = len(logs) > 1
    return [
        one_line(f"{log.subject}, {log.condition}" + (f" ({number})" if several else ""))
        for number, log in enumerate(logs, 1)
    ]


def compare_with_main(conditions: Sequence[Condition]) -> list[Compared]:
    """Compare every condition that shares trials with a main run of its subject and judge.

    Trials pair by latent, topic, seed and epoch. Sweeps are left out, since each of their trials is
    there at several strengths, and so are plain vectors, whose numbers are no latents.
    """
    found: list[Compared] = []
    for condition in conditions:
        # Ablations of a prefill are held against the plain prefill, in a section of their own.
        if _is(condition, "esr") or _is(condition, "prefill_ablation"):
            continue
        if condition.trials[["level", "vector"]].notna().any(axis=None):
            continue
        main = _main_of(condition, conditions)
        if main is not None:
            found += [one for key in (*RATES, *SCORES) if (one := _compared(condition, main, key))]
    return _corrected(found)


def _is(condition: Condition, experiment: str) -> bool:
    return condition.experiment is not None and condition.experiment.id == experiment


def _main_of(condition: Condition, conditions: Sequence[Condition]) -> Condition | None:
    """The main run that was replayed, or else the one with the most trials in common."""
    replayed = condition.log.metadata.get("replay")
    source = replayed.get("eval_id") if isinstance(replayed, dict) else None
    whose = (condition.subject, condition.judge)
    mains = [one for one in conditions if _is(one, "esr") and (one.subject, one.judge) == whose]
    return most_shared(condition, mains, source)


def most_shared(
    one: Condition, candidates: Iterable[Condition], source: str | None = None
) -> Condition | None:
    """The candidate with the most trials in common, the log of the id `source` before all others.

    Returns:
        None where none has any.
    """
    own = set(one.keys)
    best, most = None, (False, 0)
    for other in candidates:
        standing = (other.log.header.eval.eval_id == source, len(own & set(other.keys)))
        if standing[1] and standing > most:
            best, most = other, standing
    return best


def _compared(condition: Condition, main: Condition, metric: str) -> Compared | None:
    if metric not in condition.measures or metric not in main.measures:
        return None
    before, after, latents = shared_trials(main.by_trial(metric), condition.by_trial(metric))
    if not len(latents):
        return None
    about = (condition, main, metric, len(latents), len(set(latents.tolist())))
    if metric in RATES:
        return Compared(*about, rate=compare_pairs(before, after, latents))
    return Compared(*about, score=mean_difference(after - before, latents.tolist()))


def _corrected(found: list[Compared]) -> list[Compared]:
    families: dict[str, list[Compared]] = defaultdict(list)
    for one in found:
        families[one.main.name].append(one)
    adjusted = holm({name: [one.p_value for one in own] for name, own in families.items()})
    rest = {name: iter(values) for name, values in adjusted.items()}
    return [replace(one, holm=next(rest[one.main.name])) for one in found]


def usable(
    logs: Sequence[StoredLog], read: Callable[[str], T], answers: list[str]
) -> Iterator[tuple[StoredLog, T]]:
    """Read logs; where activations or verdicts cannot be used, why not stands as the answer."""
    for log in logs:
        try:
            yield log, read(log.path)
        except EsrError as error:
            why = one_line(without_place(error.message, log.path), 300)
            answers.append(f"{one_line(log.condition)}: {why}")


_LEVEL = 0.05


def paired_section(evidence: Evidence) -> Section | None:
    """Differences and ratios with intervals, tests corrected over the family."""
    if not evidence.compared:
        return None
    table = Table(
        "Condition against main run, over the trials that both have",
        (
            "condition", "number", "main run", "condition's", "difference", "ratio", "p",
            "p (Holm)", "pairs", "latents",
        ),
        [_row(one) for one in evidence.compared],
        "Difference: condition minus main run; intervals of rates by cluster bootstrap over "
        "latents, of scores by clustered t. P values respect the clusters (sign flips of whole "
        "latents for rates, t for scores); Holm's correction is over all tests against the same "
        "main run.",
    )  # fmt: skip
    return Section(
        id="paired",
        title="Against the main run, trial by trial",
        question="What changes when nothing but the condition does?",
        answers=[_answer(evidence.compared)],
        parts=[table],
        tables={"paired": pd.DataFrame([_numbers(one) for one in evidence.compared])},
    )


def in_words(one: Compared) -> str:
    """A comparison as a phrase: how large, how sure, over how many trials."""
    certain = certainty(one.holm) + (" after Holm" if one.holm is not None else "")
    shared = count(one.pairs, "shared trial")
    return f"{TITLES[one.metric]} {_difference(one)} over {shared} ({certain})"


def _answer(compared: list[Compared]) -> str:
    tested = [one for one in compared if one.holm is not None]
    clear = [one for one in tested if one.holm is not None and one.holm < _LEVEL]
    said = f"{len(clear)} of {count(len(tested), 'tested difference')} "
    said += f"hold{'s' if len(clear) == 1 else ''} at {100 * _LEVEL:.0f} % after Holm's correction"
    if not clear:
        return f"{said}."
    named = "; ".join(f"{one_line(one.condition.name)}: {in_words(one)}" for one in clear[:12])
    more = f"; and {len(clear) - 12} more" if len(clear) > 12 else ""
    return f"{said}: {named}{more}."


def _difference(one: Compared) -> str:
    if one.rate is not None:
        return points(one.rate.difference)
    return with_interval(one.score, "+.1f")


def _row(one: Compared) -> tuple[str, ...]:
    if one.rate is not None:
        before, after = (
            f"{100 * found.estimate.value:.1f} % ({found.hits:,})"
            for found in (one.rate.first, one.rate.second)
        )
        shown = with_interval(one.rate.ratio, ".2f")
    else:
        before, after, shown = *_means(one), NONE
    return (
        one_line(one.condition.name),
        TITLES[one.metric],
        before,
        after,
        _difference(one),
        shown,
        p_value(one.p_value),
        p_value(one.holm),
        f"{one.pairs:,}",
        f"{one.clusters:,}",
    )


def _means(one: Compared) -> tuple[str, str]:
    before, after = (side.by_trial(one.metric) for side in (one.main, one.condition))
    shared = [key for key in before if key in after and before[key] == before[key]]
    shared = [key for key in shared if after[key] == after[key]]
    return tuple(  # type: ignore[return-value]  # two sides, two texts
        f"{sum(side[key] for key in shared) / len(shared):.1f}" for side in (before, after)
    )


def _numbers(one: Compared) -> dict[str, object]:
    about: dict[str, object] = {
        "condition": one_line(one.condition.name),
        "main_run": one_line(one.main.name),
        "metric": one.metric,
        "pairs": one.pairs,
        "latents": one.clusters,
    }
    if one.rate is not None:
        found, ratio = one.rate.difference, one.rate.ratio
        about |= {"main": one.rate.first.estimate.value, "ours": one.rate.second.estimate.value}
        about |= {"difference": found.value, "low": found.low, "high": found.high}
        about |= {"only_main": one.rate.only_first, "only_condition": one.rate.only_second}
        about |= {"mcnemar_exact": one.rate.mcnemar, "mcnemar_mid_p": one.rate.mcnemar_mid_p}
        if ratio is not None:
            about |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
    elif one.score is not None:
        about |= {"difference": one.score.value, "low": one.score.low, "high": one.score.high}
    return about | {"p": one.p_value, "p_holm": one.holm}
