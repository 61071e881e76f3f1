"""The paper's experiments: number, question, task; the one list that tables and docs go by.

Source: arXiv 2602.06941; experiments 11 to 13 are the authors' later work (2026).
"""

from typing import Literal, NamedTuple

from esr_eval.text import one_line

ExperimentId = Literal[
    "esr",
    "boost_sweep",
    "detectors",
    "ablation",
    "finetuned",
    "meta_prompt",
    "activations",
    "cross_judge",
    "no_steering",
    "random_ablation",
    "prefill_control",
    "prefill_mirror",
    "prefill_ablation",
    "held_out",
    "vectors",
    "injected_thought",
    "protective",
]


class Experiment(NamedTuple):
    """One experiment, or one half of one.

    Attributes:
        number: Of the paper's protocol, as in docs/how-to/paper.md; 9 is the statistics of 6.
        id: What its logs carry as `experiment_id`: the task, or one half of what it runs.
        title: In a few words.
        question: What it asks.
        task: The Inspect task that runs it, with the argument that tells it apart.
    """

    number: str
    id: ExperimentId
    title: str
    question: str
    task: str


EXPERIMENTS = (
    Experiment(
        "1",
        "esr",
        "Main experiment",
        "With an unrelated latent boosted, how often does the model notice, start over and "
        "do better?",
        "esr",
    ),
    Experiment(
        "2",
        "boost_sweep",
        "Boost sweep",
        "How do first scores and corrections depend on the strength of the boost?",
        "boost_sweep",
    ),
    Experiment(
        "3a",
        "detectors",
        "Off-topic detectors",
        "Which latents are silent while an answer fits its task and active when it does not?",
        "detectors",
    ),
    Experiment(
        "3b",
        "ablation",
        "Ablation of the detectors",
        "Does the model correct itself less when these latents are held at 0?",
        "ablation",
    ),
    Experiment(
        "4",
        "finetuned",
        "Fine-tuned subject",
        "Does training on self-correction make the model correct itself under a boost?",
        "finetuned",
    ),
    Experiment(
        "5",
        "meta_prompt",
        "Meta-prompts",
        "Does a warning in the prompt make the model correct itself more often?",
        "meta_prompt",
    ),
    Experiment(
        "6, 9",
        "activations",
        "Activations over episodes, and their statistics",
        "Are detectors more active while the text is off-topic than after the correction, or "
        "in unsteered answers?",
        "activations",
    ),
    Experiment(
        "7",
        "cross_judge",
        "Cross-judge agreement",
        "Do other judges find the same attempts, and the same direction of change?",
        "cross_judge",
    ),
    Experiment(
        "8",
        "no_steering",
        "No steering",
        "How are the same tasks answered with the boost off?",
        "esr -T steering=false",
    ),
    Experiment(
        "10",
        "random_ablation",
        "Random-latent control",
        "Does holding as many random latents, firing as often, at 0 change anything?",
        "random_ablation",
    ),
    Experiment(
        "11a",
        "prefill_control",
        "Prefill control",
        "Does the unsteered model, given the beginning of a steered answer, correct it too?",
        "prefill_control",
    ),
    Experiment(
        "11b",
        "prefill_mirror",
        "Prefill control, mirrored",
        "Does the steered model, given an on-topic beginning, stay on topic?",
        "prefill_control -T mirror=true",
    ),
    Experiment(
        "11c",
        "prefill_ablation",
        "Prefill control, ablated",
        "Does the unsteered model recover less from its own off-topic text while detectors are "
        "held at 0 than with random latents or none held?",
        "prefill_control -T detectors=DETECTORS",
    ),
    Experiment(
        "12",
        "held_out",
        "Held-out tasks",
        "Is the effect tied to the 38 tasks, or there for general-knowledge questions too?",
        "held_out",
    ),
    Experiment(
        "13",
        "vectors",
        "Contrastive vectors",
        "What do plain concept vectors do in place of SAE latents?",
        "vectors",
    ),
)

BEYOND = (
    Experiment(
        "14",
        "injected_thought",
        "Injected thoughts",
        "Asked whether a thought was injected, does the model notice one, and say which, beyond "
        "what the injection does to its answers to any yes/no question?",
        "injected_thought",
    ),
    Experiment(
        "15",
        "protective",
        "Protective steering",
        "Pushed towards harm and towards protection, does the model come back to what it would "
        "have said more often from the one than from the other?",
        "protective",
    ),
)
"""What the field asks next, in none of the authors' papers: run by `esr-eval paper --beyond`."""


def display_name(experiment: str, subject: str, condition: str = "") -> str:
    """What Inspect calls a run that goes on: experiment, what its condition adds, and subject.

    Args:
        experiment: Id of the experiment, or name of another task.
        subject: Whose run it is.
        condition: What tells it from the experiment's other logs, in a few words.
    """
    title = next((one.title for one in (*EXPERIMENTS, *BEYOND) if one.id == experiment), None)
    shown = title or experiment.replace("_", " ").capitalize()
    parts = [part.strip() for part in condition.split(",")]
    known = {shown.lower(), "main", "boost sweep", "cross-judge", "held-out tasks", "fine-tuned"}
    known |= {"no steering"} | ({"unsteered"} if experiment == "no_steering" else set())
    parts = [part for part in parts if part and part.lower() not in known]
    return one_line(", ".join([shown, *parts, subject]))


def tags(experiment: str, subject: str, judge: str = "", *more: str) -> list[str]:
    """What Inspect's list of logs can be searched for: experiment, subject, judge, and more.

    Args:
        experiment: Id of the experiment, or name of another task.
        subject: Whose run it is.
        judge: Who judges it.
        more: Such as whether the boost is on.
    """
    return list(dict.fromkeys(one_line(tag) for tag in (experiment, *more, subject, judge) if tag))


_RENAMED = {"main": "esr", "meta_prompts": "meta_prompt", "prefill": "prefill_control"}
"""What the first logs of version 0.1 call experiments."""


def current_id(stored: str) -> str:
    """The id of the experiment that a log calls so, whenever it was written."""
    return _RENAMED.get(stored, stored)
