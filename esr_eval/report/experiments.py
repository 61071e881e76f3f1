"""For every experiment: what was asked, what came out, and how to run those that are absent."""

import shlex
from collections.abc import Sequence

from esr_eval.data.experiments import EXPERIMENTS, Experiment
from esr_eval.logs.conditions import Condition
from esr_eval.report.comparisons import Compared
from esr_eval.report.section import Block, Evidence, Paragraph, Section
from esr_eval.report.sections.paired import in_words
from esr_eval.report.text import count, mean, percent
from esr_eval.text import one_line

_ARGUMENTS = {
    "ablation": "-T detectors=DETECTORS -T replay=MAIN",
    "random_ablation": "-T detectors=DETECTORS -T discovery=DISCOVERY -T replay=MAIN",
    "finetuned": "-M adapter=ADAPTER",
    "meta_prompts": "-T variant=self_monitor -T replay=MAIN",
    "activations": "-T source=MAIN -T baseline=UNSTEERED -T detectors=DETECTORS",
    "cross_judge": "-T source=MAIN -T graders=JUDGE,JUDGE",
    "no_steering": "-T replay=MAIN",
    "prefill": "-T source=MAIN",
    "prefill_mirror": "-T source=UNSTEERED",
}
"""What a task needs beyond the model; capital words are logs or files of other experiments."""
_READING = (
    "In parentheses: 95 % intervals that respect the clustering of trials by latent. All sentences "
    "and numbers are computed from the logs. Intervals of mean scores rest on the spread between "
    "latents: with few of them they are wide, and may reach beyond the scale of 0 to 100."
)


def section(evidence: Evidence, special: Sequence[Section]) -> Section:
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
