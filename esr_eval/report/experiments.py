"""For every experiment: what was asked, what came out, and how far that is from the main run."""

import shlex
from collections.abc import Sequence

import pandas as pd

from esr_eval.data.experiments import EXPERIMENTS, Experiment
from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import TITLES
from esr_eval.report.evidence import Compared, Evidence
from esr_eval.report.section import (
    NONE,
    Block,
    Paragraph,
    Section,
    Table,
    certainty,
    count,
    mean,
    p_value,
    percent,
    with_interval,
)
from esr_eval.text import one_line

_ARGUMENTS = {
    "ablation": "-T detectors=DETECTORS -T replay=MAIN",
    "random_ablation": "-T detectors=DETECTORS -T discovery=DISCOVERY -T replay=MAIN",
    "finetuned": "-M adapter=ADAPTER",
    "meta_prompt": "-T variant=self_monitor -T replay=MAIN",
    "activations": "-T source=MAIN -T baseline=UNSTEERED -T detectors=DETECTORS",
    "cross_judge": "-T source=MAIN -T graders=JUDGE,JUDGE",
    "no_steering": "-T replay=MAIN",
    "prefill_control": "-T source=MAIN",
    "prefill_mirror": "-T source=UNSTEERED",
}
"""What a task needs beyond the model; capital words are logs or files of other experiments."""
_READING = (
    "In parentheses: 95 % intervals that respect the clustering of trials by latent. All sentences "
    "and numbers are computed from the logs. Intervals of mean scores rest on the spread between "
    "latents: with few of them they are wide, and may reach beyond the scale of 0 to 100."
)


def experiments_section(evidence: Evidence, special: Sequence[Section]) -> Section:
    """Questions and answers of the experiments present, and the commands of those absent.

    Args:
        evidence: The logs.
        special: Sections that report on an experiment of their own, such as the detectors.
    """
    own = {one.experiment: one.answers for one in special if one.experiment}
    present = []
    for experiment in EXPERIMENTS:
        logs = evidence.logs_of(experiment.id)
        if not logs:
            continue
        answers = list(own.get(experiment.id, []))
        if not answers:
            answers = [sentence(one, evidence.compared) for one in evidence.of(experiment.id)]
        if not answers:
            answers = [f"{count(len(logs), 'log')} without a score yet."]
        present.append({"experiment": experiment, "answers": answers})
    shown = {found["experiment"] for found in present}
    absent = [
        {"experiment": one, "command": command(one, evidence)}
        for one in EXPERIMENTS
        if one not in shown
    ]
    return Section(
        id="experiments",
        title="What was asked, and what came out",
        parts=[Paragraph(_READING), Block("experiments", {"present": present, "absent": absent})],
    )


def command(experiment: Experiment, evidence: Evidence) -> str:
    """The command that runs an experiment on the report's subject."""
    subject = next((log.subject for log in evidence.logs if log.experiment), "NAME")
    model = shlex.quote(f"esr/{one_line(subject)}")
    parts = [f"inspect eval esr_eval/{experiment.task} --model {model}"]
    return " ".join([*parts, _ARGUMENTS.get(experiment.id, "")]).strip()


def sentence(condition: Condition, compared: Sequence[Compared]) -> str:
    """What came out of one condition, with numbers and n."""
    found = condition.measures
    who = [] if condition.subject in condition.name else [one_line(condition.subject)]
    about = ", ".join([*who, f"judged by {one_line(condition.judge)}"])
    name = f"{one_line(condition.name)} ({about})"
    multi, first = found.get("multi_attempt"), found.get("first_score")
    if multi is None or first is None:
        failed, unscored = int(condition.failed.sum()), found.get("unscored")
        told = f"{failed:,} failed" if failed else "none failed"
        if unscored is not None:
            told += f", {unscored.hits:,} could not be scored"
        trials = count(len(condition.trials), "trial")
        return f"{name}: no rate, since none of {trials} held a scored attempt ({told})."
    esr = found["esr"]
    said = (
        f"{name}: of {count(multi.n, 'trial')} with an attempt "
        f"({count(multi.clusters, condition.direction)}), {multi.hits:,} held several, "
        f"{percent(multi)}, and {esr.hits:,} ended better than they began, {percent(esr)}; "
        f"first attempts scored {mean(first)} of 100."
    )
    against = [
        one
        for one in compared
        if one.condition is condition and one.metric in ("multi_attempt", "first_score")
    ]
    if against:
        said += f" Against {one_line(against[0].main.name)}: {'; '.join(map(in_words, against))}."
    return said


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
