"""Meta-prompts (paper, experiment on prompting): a sentence that warns of the distraction."""

from inspect_ai import Task, task

from esr_eval.checks import Wanted
from esr_eval.data.arguments import (
    Count,
    Flag,
    LatentsArgument,
    LogFile,
    Method,
    Number,
    Prior,
    Seed,
    Share,
    Strength,
    Topics,
    checked,
    with_method,
)
from esr_eval.dataset import meta_prompts
from esr_eval.errors import EsrError
from esr_eval.tasks.experiment import Draw, Plan, Protocol, Setup, experiment, no_steering

PROTOCOL = Protocol("5 (meta-prompts)", "The sentences are in this project's own words.")


@task
@checked
def meta_prompt(
    variant: str = "self_monitor",
    latents: LatentsArgument = None,
    n_latents: Number | None = None,
    trials_per_latent: Count = 5,
    strength: Strength = "calibrated",
    topics: Topics = None,
    steering: Flag = True,
    seed: Seed = 0,
    replay: LogFile | None = None,
    holistic: Flag = False,
    rejudge: Share = 0.0,
    prior: Prior = None,
    method: Method = None,
) -> Task:
    """The main experiment with a sentence appended to every task.

    Args:
        variant: dont_get_distracted, ignore_latent_label, self_monitor or resist_manipulation.
        latents: Indices or a file of labels, as in `esr`.
        n_latents: How many latents to draw at random. Default: all.
        trials_per_latent: Trials for each latent.
        strength: As in `esr`.
        topics: Topics to ask about, of the 38. Default: all.
        steering: false for the sentence alone, with the boost off.
        seed: Seed of the draw of latents, tasks and sampling seeds.
        replay: A log of `esr` whose trials are run again with the sentence.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
        prior: Changes to the prior of strengths that are calibrated in the run, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
    """
    sentences = meta_prompts()
    if variant not in sentences:
        raise EsrError(f"There is no meta-prompt '{variant}'; there are {', '.join(sentences)}.")
    setup = Setup.open(Wanted(labels=replay is None, latents=latents))
    draw = Draw(
        latents, n_latents, trials_per_latent, strength, topics, seed, with_method(prior, method)
    )
    plan = setup.plan(draw, steering, replay)
    planned = [
        one._replace(text=f"{one.text} {sentences[variant].format(label=one.trial.label)}")
        for one in plan.planned
    ]
    return experiment(
        setup,
        Plan(planned, plan.source),
        PROTOCOL,
        "meta_prompt",
        name=f"esr-{variant}",
        condition=f"meta-prompt: {variant}" + no_steering(steering),
        holistic=holistic,
        rejudge=rejudge,
        extra={"meta_prompt": sentences[variant]},
    )
