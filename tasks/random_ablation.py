"""Ablation of random latents, as the detectors' control (paper, random-latent control)."""

from collections.abc import Sequence
from typing import Any

from inspect_ai import Task, task

from esr_eval.data.arguments import (
    CountOrNone,
    Flag,
    LatentsOrSet,
    LayerName,
    LogFile,
    RuleName,
    Seed,
    Share,
    checked,
)
from esr_eval.detectors.choice import DetectorSet
from esr_eval.errors import EsrError
from esr_eval.tasks.ablation import ending, find_detectors, layer_of, replayed
from esr_eval.tasks.experiment import Ablation, Protocol, Setup, experiment

PROTOCOL = Protocol(
    "10 (random-latent control)",
    "Each random latent is drawn among those that fire about as often as its detector.",
    "Sets of different draws share no latent.",
)


@task
@checked
def random_ablation(
    detectors: LatentsOrSet,
    discovery: LogFile,
    replay: LogFile,
    draw: CountOrNone = 0,
    layer: LayerName = "steering",
    rule: RuleName = "silent",
    steering: Flag = True,
    seed: Seed = 0,
    holistic: Flag = False,
    rejudge: Share = 0.0,
) -> Task:
    """The same with as many random latents, each firing about as often as a detector, held at 0.

    None of them is a detector, boosted, or dead (never active in the discovery). One log is one
    set; the paper has three (draw=0, 1 and 2).

    Args:
        detectors: Those of the ablation that this controls for, named as there.
        discovery: The log of esr_eval/detectors that says how often each latent fires.
        replay: The log whose latents, strengths, tasks and seeds are run again.
        draw: Number of the set, from 0; sets share no latent.
        layer: Where they are held at 0: the `steering` or the `feature` layer.
        rule: Which of a file's or log's sets the detectors are: `silent` or `separability`.
        steering: false for the ablation alone, with the boost off.
        seed: Seed of the sets.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
    """
    setup = Setup.open()
    chosen = find_detectors(setup, detectors, rule)
    plan = replayed(setup, replay, steering)
    boosted = sorted({one.trial.latent for one in plan.planned})
    random, about = matched_set(setup, chosen, discovery, boosted, draw, seed, layer)
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "random_ablation",
        name="esr-random-ablation",
        condition=random.name + ending(layer, steering),
        ablation=random,
        holistic=holistic,
        rejudge=rejudge,
        extra={"random_set": about},
    )


def matched_set(
    setup: Setup,
    chosen: DetectorSet,
    discovery: str,
    boosted: Sequence[int],
    draw: int,
    seed: int,
    layer: LayerName,
) -> tuple[Ablation, dict[str, Any]]:
    """As many random latents as detectors, each firing about as often, and what the log says of it.

    Args:
        setup: The model under test.
        chosen: The detectors.
        discovery: The log of esr_eval/detectors that says how often each latent fires.
        boosted: Latents that are not drawn either.
        draw: Number of the set, from 0; sets share no latent.
        seed: Seed of the sets.
        layer: Where they are held at 0.

    Raises:
        EsrError: The discovery is of another SAE, or cannot be read.
    """
    from esr_eval.detectors.discovery import read_discovery
    from esr_eval.detectors.statistics import draw_matched

    found = read_discovery(discovery)
    if found.runtime.sae != setup.provider.runtime.sae:
        raise EsrError(f"{discovery} read another SAE than the one of the model under test.")
    rates = found.pairs.rate
    drawn = draw_matched(rates, chosen.latents, boosted, draw, seed)
    about = {
        "draw": draw,
        "seed": seed,
        "control_for": chosen.name,
        "discovery": found.source,
        "detectors": list(chosen.latents),
        "drawn": list(drawn),
        "detector_rates": [round(rate, 6) for rate in rates[list(chosen.latents)].tolist()],
        "drawn_rates": [round(rate, 6) for rate in rates[list(drawn)].tolist()],
    }
    ablation = Ablation(f"random set {draw + 1}", tuple(sorted(drawn)), layer_of(setup, layer))
    return ablation, about
