"""Whether two logs measure the same thing, and whether the new one is all there."""

from esr_eval.logs.measured import Measured
from esr_eval.report.changes import METRICS

FROM_ANSWERS = ("sae_digest", "rubric")
"""Settings that only trials with an answer tell of."""


def differences(base: Measured, new: Measured) -> list[str]:
    """What decides the numbers and is not the same in both logs."""
    found = [
        f"{name} {base.settings.get(name)} and {new.settings.get(name)}"
        for name in dict.fromkeys((*base.settings, *new.settings))
        if base.settings.get(name) != new.settings.get(name)
        and not (name in FROM_ANSWERS and None in (base.settings.get(name), new.settings.get(name)))
    ]
    if base.planned != new.planned:
        found.append(f"{base.planned} and {new.planned} trials")
    shared = base.boosts.keys() & new.boosts.keys()
    if other := sum(base.boosts[key] != new.boosts[key] for key in shared):
        found.append(f"other boosts in {other} of {len(shared)} trials")
    return found


def other_trials(base: Measured, new: Measured) -> list[str]:
    """That the new log has trials of its own: other latents, tasks or seeds were drawn."""
    strange = len(new.boosts.keys() - base.boosts.keys())
    return [f"{strange} of {len(new.boosts)} trials are not the base's"] if strange else []


def remarks(base: Measured, new: Measured) -> list[str]:
    """What is worth knowing of the two logs and keeps nobody from comparing them."""
    moved = [
        f"{name} {base.versions[name]} and {new.versions[name]}"
        for name in base.versions.keys() & new.versions.keys()
        if base.versions[name] != new.versions[name]
    ]
    found = [f"other versions: {', '.join(sorted(moved))}"] if moved else []
    if ("improvement" in base.values) != ("improvement" in new.values):
        found.append("only one of the logs has the scorer esr_eval/improvement")
    return [*found, *base.notes, *new.notes]


def failures(base: Measured, new: Measured, margin: float) -> list[str]:
    """Regressions that need no statistics.

    Args:
        base: The stored log.
        new: The new one.
        margin: Share of the trials due that may be missing.
    """
    found = [] if new.status == "success" else [f"the run's status is {new.status}"]
    # A smaller plan is another setting and no failure; what was planned has to be there.
    due = min(base.completed, new.planned)
    if new.completed < due * (1 - margin):
        found.append(f"{new.completed} trials came to an end; {due} were due")
    for metric in METRICS:
        rescored = metric == "improvement" and "improvement_unscored" not in new.values
        if base.values.get(metric) and not new.values.get(metric) and not rescored:
            found.append(f"no trial has a value of {metric} any more")
    return found
