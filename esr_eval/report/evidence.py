"""What sections are made from: conditions, and each against the main run on shared trials."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, shared_trials
from esr_eval.logs.measures import HOLISTIC
from esr_eval.logs.stored import StoredLog, without_place
from esr_eval.stats.comparisons import PairedComparison, compare_pairs, holm
from esr_eval.stats.means import Difference, mean_difference
from esr_eval.text import one_line

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

    def of(self, *experiments: str) -> list[Condition]:
        """The conditions of some experiments."""
        return [
            one for one in self.conditions if one.experiment and one.experiment.id in experiments
        ]

    def logs_of(self, experiment: str) -> list[StoredLog]:
        """The logs of an experiment, those without trials among them."""
        return [log for log in self.logs if log.experiment and log.experiment.id == experiment]


def compare_with_main(conditions: Sequence[Condition]) -> list[Compared]:
    """Compare every condition that shares trials with a main run of its subject and judge.

    Trials pair by latent, topic, seed and epoch. Sweeps are left out, since each of their trials is
    there at several strengths, and so are plain vectors, whose numbers are no latents.
    """
    found: list[Compared] = []
    for condition in conditions:
        if _is_main(condition) or condition.trials[["level", "vector"]].notna().any(axis=None):
            continue
        main = _main_of(condition, conditions)
        if main is not None:
            found += [one for key in (*RATES, *SCORES) if (one := _compared(condition, main, key))]
    return _corrected(found)


def _is_main(condition: Condition) -> bool:
    return condition.experiment is not None and condition.experiment.id == "esr"


def _main_of(condition: Condition, conditions: Sequence[Condition]) -> Condition | None:
    """The main run that was replayed, or else the one with the most trials in common."""
    replayed = condition.log.metadata.get("replay")
    source = replayed.get("eval_id") if isinstance(replayed, dict) else None
    own = set(condition.keys)
    best, most = None, (False, 0)
    for main in conditions:
        if not _is_main(main) or (main.subject, main.judge) != (condition.subject, condition.judge):
            continue
        shared = len(own & set(main.keys))
        standing = (main.log.header.eval.eval_id == source, shared)
        if shared and standing > most:
            best, most = main, standing
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


def unusable(log: StoredLog, error: EsrError) -> str:
    """What is told in place of an answer where a log's activations or verdicts cannot be used."""
    return f"{one_line(log.condition)}: {one_line(without_place(error.message, log.path), 300)}"
