"""Ablation of off-topic detectors (paper, experiment on ablation): held at 0 in a replayed run."""

from inspect_ai import Task, task

from esr_eval.data.arguments import Flag, LatentsOrSet, LayerName, LogFile, RuleName, Share, checked
from esr_eval.detectors.choice import DetectorSet, load_detectors
from esr_eval.errors import EsrError
from esr_eval.tasks.experiment import Ablation, Plan, Protocol, Setup, experiment, no_steering

PROTOCOL = Protocol(
    "3 (ablation of the off-topic detectors)",
    "Detectors are this subject's own, or the published ones of the paper's SAE.",
)


@task
@checked
def ablation(
    detectors: LatentsOrSet,
    replay: LogFile,
    layer: LayerName = "steering",
    rule: RuleName = "silent",
    steering: Flag = True,
    holistic: Flag = False,
    rejudge: Share = 0.0,
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
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
    """
    setup = Setup.open()
    chosen = find_detectors(setup, detectors, rule)
    plan = replayed(setup, replay, steering)
    boosted = {one.trial.latent for one in plan.planned}
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "ablation",
        name="esr-ablation",
        condition=f"ablated: {chosen.name}" + ending(layer, steering),
        ablation=Ablation(chosen.name, chosen.latents, layer_of(setup, layer)),
        holistic=holistic,
        rejudge=rejudge,
        extra={
            "detectors": chosen.source,
            "boosted_detectors": sorted(boosted & set(chosen.latents)),
        },
    )


def find_detectors(setup: Setup, source: str | int | list[int], rule: str) -> DetectorSet:
    """The detectors that are ablated, checked against the SAE; see `load_detectors`."""
    chosen = load_detectors(source, setup.provider.runtime, rule)
    setup.provider.check_latents(chosen.latents)
    return chosen


def replayed(setup: Setup, log: str, steering: bool) -> Plan:
    """The trials of a log that an ablation may run again.

    Raises:
        EsrError: There are none, or they boosted no latents.
    """
    plan = setup.replayed(log, None if steering else "unsteered")
    if steering and any(one.trial.condition != "steered" for one in plan.planned):
        raise EsrError(
            f"The log {log} is unsteered: replay a steered one, or pass -T steering=false."
        )
    if any(one.trial.vector is not None for one in plan.planned):
        raise EsrError(f"The log {log} added plain vectors: replay one that boosted latents.")
    return plan


def layer_of(setup: Setup, layer: str) -> int:
    """The index of the layer at which latents are held at 0.

    Raises:
        EsrError: The model has no such layer.
    """
    runtime = setup.provider.runtime
    index = runtime.steering_layer if layer == "steering" else runtime.feature_layer
    if index is None:
        raise EsrError(f"The model has no {layer} layer: name one with -M {layer}_layer=.")
    return index


def ending(layer: str, steering: bool) -> str:
    """How a condition ends; the published settings go without saying."""
    where = "" if layer == "steering" else f", at the {layer} layer"
    return where + no_steering(steering)
