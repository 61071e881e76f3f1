"""Whether two logs measure the same thing, and whether the new one is all there."""

from esr_eval.logs.conditions import Condition, scorers_of
from esr_eval.report.changes import METRICS, values_of

FROM_ANSWERS = ("sae_digest", "rubric")
"""Settings that only trials with an answer tell of."""


def differences(base: Condition, new: Condition) -> list[str]:
    """What decides the numbers and is not the same in both logs."""
    known, other = base.settings, new.settings
    found = [
        f"{name} {known.get(name)} and {other.get(name)}"
        for name in dict.fromkeys((*known, *other))
        if known.get(name) != other.get(name)
        and not (name in FROM_ANSWERS and None in (known.get(name), other.get(name)))
    ]
    if base.log.planned != new.log.planned:
        found.append(f"{base.log.planned} and {new.log.planned} trials")
    before, after = base.by_trial("strength"), new.by_trial("strength")
    shared = before.keys() & after.keys()
    if moved := sum(before[key] != after[key] for key in shared):
        found.append(f"other boosts in {moved} of {len(shared)} trials")
    return found


def other_trials(base: Condition, new: Condition) -> list[str]:
    """That the new log has trials of its own: other latents, tasks or seeds were drawn."""
    strange = len(set(new.keys) - set(base.keys))
    return [f"{strange} of {len(new.keys)} trials are not the base's"] if strange else []


def remarks(base: Condition, new: Condition) -> list[str]:
    """What is worth knowing of the two logs and keeps nobody from comparing them."""
    before, after = base.log.versions, new.log.versions
    moved = [
        f"{name} {before[name]} and {after[name]}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    found = [f"other versions: {', '.join(sorted(moved))}"] if moved else []
    if bool(values_of(base, "improvement")) != bool(values_of(new, "improvement")):
        found.append("only one of the logs has the scorer esr_eval/improvement")
    for count in (len(scorers_of(one.log)) for one in (base, new)):
        if count > 1:
            found.append(f"scored {count} times; the first is taken")
    return found


def failures(base: Condition, new: Condition, margin: float) -> list[str]:
    """Regressions that need no statistics.

    Args:
        base: The stored log.
        new: The new one.
        margin: Share of the trials due that may be missing.
    """
    found = [] if new.log.status == "success" else [f"the run's status is {new.log.status}"]
    # A smaller plan is another setting and no failure; what was planned has to be there.
    due = min(base.completed, new.log.planned)
    if new.completed < due * (1 - margin):
        found.append(f"{new.completed} trials came to an end; {due} were due")
    for metric in METRICS:
        unjudged = metric == "improvement" and not values_of(new, "improvement_unscored")
        if values_of(base, metric) and not values_of(new, metric) and not unjudged:
            found.append(f"no trial has a value of {metric} any more")
    return found
