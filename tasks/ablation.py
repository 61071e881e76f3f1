"""Ablation of off-topic detectors, and of random latents as their control (paper, experiments)."""

from inspect_ai import Task, task

from esr_eval.data.arguments import (
    CountOrNone,
    Flag,
    LatentsOrSet,
    LayerName,
    LogFile,
    RuleName,
    Seed,
    checked,
)
from esr_eval.detectors.choice import DetectorSet, load_detectors
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime
from esr_eval.tasks.experiment import Ablation, Bench, Plan, experiment, plan_trials

VERSION = 1
ABLATION = {
    "paper": "arXiv:2602.06941",
    "experiment": "3 (ablation of the off-topic detectors)",
    "deviations": ["Detectors are this subject's own, or the published ones of the paper's SAE."],
}
RANDOM = {
    "paper": "arXiv:2602.06941",
    "experiment": "10 (random-latent control)",
    "deviations": [
        "Each random latent is drawn among those that fire about as often as its detector.",
        "Sets of different draws share no latent.",
    ],
}


@task
@checked
def ablation(
    detectors: LatentsOrSet,
    replay: LogFile,
    layer: LayerName = "steering",
    rule: RuleName = "silent",
    steering: Flag = True,
    holistic: Flag = False,
) -> Task:
    """The main experiment run again, trial by trial, with the detectors held at 0.

    Args:
        detectors: A detector file, a log of esr_eval/detectors, the name of a published set
            (paper_26, for its own SAE), or indices (7,12,40).
        replay: The log whose latents, strengths, tasks and seeds are run again.
        layer: Where they are held at 0: the `steering` layer, as published, or the `feature` layer
            that the SAE was trained on.
        rule: Which of a file's or log's sets: `silent` or `separability`.
        steering: false for the ablation alone, with the boost off.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
    """
    bench = Bench.open()
    chosen = _detectors(bench, detectors, rule)
    plan = _replayed(bench, replay, steering)
    boosted = {one.trial.latent for one in plan.planned}
    return experiment(
        bench,
        plan,
        version=VERSION,
        paper=ABLATION,
        name="esr-ablation",
        experiment_id="ablation",
        condition=_condition(f"ablated: {chosen.name}", layer, steering),
        ablation=Ablation(chosen.name, chosen.latents, _layer(bench.provider.runtime, layer)),
        holistic=holistic,
        extra={
            "detectors": chosen.source,
            "boosted_detectors": sorted(boosted & set(chosen.latents)),
        },
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
    """
    from esr_eval.detectors.matching import draw_matched
    from esr_eval.detectors.stored import read_discovery

    bench = Bench.open()
    runtime = bench.provider.runtime
    chosen = _detectors(bench, detectors, rule)
    plan = _replayed(bench, replay, steering)
    found = read_discovery(discovery)
    if found.runtime.sae != runtime.sae:
        raise EsrError(f"{discovery} read another SAE than the one of the model under test.")
    rates = found.pairs.rate
    boosted = sorted({one.trial.latent for one in plan.planned})
    drawn = draw_matched(rates, chosen.latents, boosted, draw, seed)
    name = f"random set {draw + 1}"
    return experiment(
        bench,
        plan,
        version=VERSION,
        paper=RANDOM,
        name="esr-random-ablation",
        experiment_id="random_ablation",
        condition=_condition(name, layer, steering),
        ablation=Ablation(name, tuple(sorted(drawn)), _layer(runtime, layer)),
        holistic=holistic,
        extra={
            "random_set": {
                "draw": draw,
                "seed": seed,
                "control_for": chosen.name,
                "discovery": found.source,
                "detectors": list(chosen.latents),
                "drawn": list(drawn),
                "detector_rates": _rounded(rates[list(chosen.latents)].tolist()),
                "drawn_rates": _rounded(rates[list(drawn)].tolist()),
            }
        },
    )


def _detectors(bench: Bench, source: str | int | list[int], rule: str) -> DetectorSet:
    chosen = load_detectors(source, bench.provider.runtime, rule)
    bench.provider.check_latents(chosen.latents)
    return chosen


def _replayed(bench: Bench, replay: str, steering: bool) -> Plan:
    plan = plan_trials(
        bench,
        latents=None,
        n_latents=None,
        trials_per_latent=1,
        strength="calibrated",
        topics=None,
        steering=steering,
        seed=0,
        replay=replay,
    )
    if steering and any(one.trial.condition != "steered" for one in plan.planned):
        raise EsrError(
            f"The log {replay} is unsteered: replay a steered one, or pass -T steering=false."
        )
    if any(one.trial.vector is not None for one in plan.planned):
        raise EsrError(f"The log {replay} added plain vectors: replay one that boosted latents.")
    return plan


def _layer(runtime: Runtime, layer: str) -> int:
    index = runtime.steering_layer if layer == "steering" else runtime.feature_layer
    if index is None:
        raise EsrError(f"The model has no {layer} layer: name one with -M {layer}_layer=.")
    return index


def _condition(name: str, layer: str, steering: bool) -> str:
    """What tells the log apart; the published settings go without saying."""
    where = "" if layer == "steering" else f", at the {layer} layer"
    return name + where + ("" if steering else ", no steering")


def _rounded(rates: list[float]) -> list[float]:
    return [round(rate, 6) for rate in rates]
