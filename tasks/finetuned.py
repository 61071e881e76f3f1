"""Fine-tuned subject (paper, experiment on fine-tuning): the main run on a trained model."""

from dataclasses import replace

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
    StrengthOrReplay,
    Topics,
    checked,
    with_method,
)
from esr_eval.errors import EsrError
from esr_eval.finetune.card import adapter_facts
from esr_eval.tasks.experiment import Draw, Protocol, Setup, experiment, no_steering

PROTOCOL = Protocol("4 (fine-tuning)", "How the adapter was trained is told by its model card.")


@task
@checked
def finetuned(
    replay: LogFile | None = None,
    latents: LatentsArgument = None,
    n_latents: Number | None = None,
    trials_per_latent: Count = 5,
    strength: StrengthOrReplay = "calibrated",
    topics: Topics = None,
    steering: Flag = True,
    seed: Seed = 0,
    holistic: Flag = False,
    rejudge: Share = 0.0,
    prior: Prior = None,
    method: Method = None,
    until_token: Number | None = None,
) -> Task:
    """The main experiment on a subject with an adapter, at strengths of its own.

    Name the adapter with `-M adapter=PATH` (or run a subject that has one). Training moves the
    strength at which a latent derails the model, so a replay takes latents, tasks and seeds from
    the base model's log, and the strengths from the calibration of the tuned model.

    Args:
        replay: A log of the base model whose latents, tasks and seeds are run.
        latents: Indices or a file of labels, as in `esr`.
        n_latents: How many latents to draw at random. Default: all.
        trials_per_latent: Trials for each latent.
        strength: `calibrated` (on the tuned model), a number, a multiple of the calibrated
            (`1.5x`), or `replay` for the base model's strengths.
        topics: Topics to ask about, of the 38. Default: all.
        steering: false for the tuned model's own baseline.
        seed: Seed of the draw of latents, tasks and sampling seeds.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
        prior: Changes to the prior of strengths that are calibrated in the run, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
        until_token: End the boost after so many generated tokens (not the paper's setting).
    """
    setup = Setup.open(Wanted(labels=replay is None, latents=latents))
    adapter = setup.provider.runtime.adapter
    subject = setup.provider.subject
    if adapter is None:
        raise EsrError(f"{subject.name} has no adapter: pass one as -M adapter=PATH.")
    if strength == "replay" and replay is None:
        raise EsrError("strength=replay takes the strengths of a log: pass it as replay=LOG.")
    draw = Draw(
        latents, n_latents, trials_per_latent, strength, topics, seed, with_method(prior, method)
    )
    plan = setup.plan(draw, steering, replay)
    if replay is not None and steering and strength != "replay":
        plan = replace(setup.restrengthened(plan.planned, draw), source=plan.source)
    facts = adapter_facts(adapter)
    # A subject that always has its adapter is told by its name; of others the mix tells them apart.
    unnamed = adapter != subject.adapter
    mix = f", {facts.mix_percent:g} %" if facts is not None and unnamed else ""
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "finetuned",
        name="esr-finetuned",
        condition=f"fine-tuned{mix}" + no_steering(steering),
        holistic=holistic,
        rejudge=rejudge,
        until_token=until_token,
        extra={"adapter": facts.model_dump(mode="json")} if facts is not None else None,
    )
