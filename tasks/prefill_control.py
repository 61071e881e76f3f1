"""Prefill control, mirrored or ablated (2026): noticing bad text, or resisting the boost?"""

from dataclasses import replace
from typing import Any

from inspect_ai import Task, task

from esr_eval.data.arguments import (
    CountOrNone,
    Flag,
    LatentsOrSet,
    LayerName,
    LogFile,
    Method,
    Number,
    Prior,
    RuleName,
    Seed,
    Share,
    Strength,
    checked,
    with_method,
)
from esr_eval.dataset import Planned
from esr_eval.errors import EsrError
from esr_eval.logs.replay import Response, read_responses
from esr_eval.scorers.phrases import find_restarts
from esr_eval.tasks.ablation import ending, find_detectors, layer_of
from esr_eval.tasks.experiment import Ablation, Draw, Plan, Protocol, Setup, experiment
from esr_eval.tasks.random_ablation import matched_set

PROTOCOL = Protocol(
    "11 (prefill control, its mirror and its ablation)",
    "The graded response is the given beginning and what the model adds to it; what it adds is "
    "graded by itself, too.",
)


@task
@checked
def prefill_control(
    source: LogFile,
    characters: Number = 1100,
    mirror: Flag = False,
    detectors: LatentsOrSet | None = None,
    discovery: LogFile | None = None,
    draw: CountOrNone = 0,
    layer: LayerName = "steering",
    rule: RuleName = "silent",
    strength: Strength = "calibrated",
    seed: Seed = 0,
    prior: Prior = None,
    method: Method = None,
    holistic: Flag = False,
    rejudge: Share = 0.0,
) -> Task:
    """The unsteered model continues steered answers; mirrored, the steered one unsteered answers.

    A beginning that holds a restart is cut before it, so that every correction that is counted is
    the continuing model's own. Run without detectors, with them held at 0, and with random latents
    held at 0, the recovered scores compare pair by pair (`esr-eval summary`, `report`): same
    trial, same beginning, same seed. Where restarts are rare, that sees what rates cannot.

    Args:
        source: The log whose answers are continued: a steered one, or for the mirror an
            unsteered one.
        characters: Length of the beginning that is taken from each answer (2026: 1,100).
        mirror: Continue on-topic beginnings with the boost on.
        detectors: Hold these at 0 while the model goes on: named as in `ablation`.
        discovery: Hold as many random latents at 0 in their place, drawn by this log of
            esr_eval/detectors as in `random_ablation`.
        draw: Number of the random set, from 0; sets share no latent.
        layer: Where latents are held at 0: the `steering` or the `feature` layer.
        rule: Which of a file's or log's sets the detectors are: `silent` or `separability`.
        strength: For the mirror, as in `esr`.
        seed: Of the random sets, and of searches for strengths that the mirror lacks.
        prior: Of these searches, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
    """
    if mirror and detectors is not None:
        raise EsrError("The mirror has its boost on and ablates nothing: leave out detectors.")
    if discovery is not None and detectors is None:
        raise EsrError(
            "discovery= holds random latents at 0 in place of detectors: pass those as detectors=, "
            "the log itself, say."
        )
    setup = Setup.open()
    responses, origin = read_responses(source)
    wanted = "unsteered" if mirror else "steered"
    if any(one.trial.condition != wanted for one in responses):
        raise EsrError(f"{source} holds trials that are not {wanted}: name another log as source=.")
    boosted = sorted({one.trial.latent for one in responses})
    setup.provider.check_latents(boosted)
    planned = [_continued(one, characters, mirror) for one in responses]
    plan = Plan([one for one in planned if one.prefill], origin)
    extra: dict[str, Any] = {
        "characters": characters,
        "no_beginning": len(planned) - len(plan.planned),
    }
    if mirror:
        drawn = Draw(None, None, 1, strength, None, seed, with_method(prior, method))
        plan = replace(setup.restrengthened(plan.planned, drawn), source=origin)
        return experiment(
            setup,
            plan,
            PROTOCOL,
            "prefill_mirror",
            name="esr-prefill-mirror",
            condition="on-topic prefill, steered",
            holistic=holistic,
            extra=extra,
        )
    held = None
    if detectors is not None:
        chosen = find_detectors(setup, detectors, rule)
        if discovery is None:
            held = Ablation(chosen.name, chosen.latents, layer_of(setup, layer))
            extra["detectors"] = chosen.source
        else:
            held, extra["random_set"] = matched_set(
                setup, chosen, discovery, boosted, draw, seed, layer
            )
    what = "no steering"
    if held is not None:
        what = (held.name if discovery else f"ablated: {held.name}") + ending(layer, True)
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "prefill_control" if held is None else "prefill_ablation",
        name="esr-prefill",
        condition=f"steered prefill, {what}",
        ablation=held,
        holistic=holistic,
        rejudge=rejudge,
        continued=True,
        extra=extra,
    )


def _continued(one: Response, characters: int, mirror: bool) -> Planned:
    beginning = one.response[:characters]
    restarts = find_restarts(beginning, one.text)
    if restarts:
        beginning = beginning[: restarts[0].start]
    trial = one.trial.model_copy(
        update={
            "condition": "steered" if mirror else "unsteered",
            "strength": 0.0,
            "strength_found": None,
            "source_score": one.first_score,
        }
    )
    # Templates end in white space, and a beginning that ends in it makes an unusual next token.
    return Planned(trial, one.text, beginning.rstrip())
