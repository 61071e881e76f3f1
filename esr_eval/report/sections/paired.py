"""Conditions against the main run, trial by trial."""

import pandas as pd

from esr_eval.logs.measures import TITLES
from esr_eval.report.comparisons import Compared
from esr_eval.report.intervals import with_interval
from esr_eval.report.section import Evidence, Section, Table
from esr_eval.report.text import NONE, certainty, count, p_value
from esr_eval.text import one_line

LEVEL = 0.05


def section(evidence: Evidence) -> Section | None:
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
    clear = [one for one in tested if one.holm is not None and one.holm < LEVEL]
    said = f"{len(clear)} of {count(len(tested), 'tested difference')} "
    said += f"hold{'s' if len(clear) == 1 else ''} at {100 * LEVEL:.0f} % after Holm's correction"
    if not clear:
        return f"{said}."
    named = "; ".join(f"{one_line(one.condition.name)}: {in_words(one)}" for one in clear[:12])
    more = f"; and {len(clear) - 12} more" if len(clear) > 12 else ""
    return f"{said}: {named}{more}."


def _difference(one: Compared) -> str:
    if one.rate is not None:
        found = one.rate.difference
        return with_interval(found.value, found.low, found.high, "+.1f", " points", 100)
    assert one.score is not None
    return with_interval(one.score.value, one.score.low, one.score.high, "+.1f")


def _row(one: Compared) -> tuple[str, ...]:
    if one.rate is not None:
        before, after = (
            f"{100 * found.estimate.value:.1f} % ({found.hits:,})"
            for found in (one.rate.first, one.rate.second)
        )
        ratio = one.rate.ratio
        shown = NONE if ratio is None else with_interval(ratio.value, ratio.low, ratio.high, ".2f")
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
