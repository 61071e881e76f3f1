"""Prefill control and its mirror (2026): noticing bad text, or resisting the boost?"""

from dataclasses import replace

from inspect_ai import Task, task

from esr_eval.data.arguments import Flag, LogFile, Number, Prior, Seed, Share, Strength, checked
from esr_eval.dataset import Planned
from esr_eval.errors import EsrError
from esr_eval.logs.replay import Response, read_responses
from esr_eval.scorers.phrases import find_restarts
from esr_eval.tasks.experiment import Draw, Plan, Protocol, Setup, experiment

PROTOCOL = Protocol(
    "11 (prefill control, and its mirror)",
    "The graded response is the given beginning and what the model adds to it.",
)


@task
@checked
def prefill_control(
    source: LogFile,
    characters: Number = 1100,
    mirror: Flag = False,
    strength: Strength = "calibrated",
    seed: Seed = 0,
    prior: Prior = None,
    holistic: Flag = False,
    rejudge: Share = 0.0,
) -> Task:
    """The unsteered model continues steered answers; mirrored, the steered one unsteered answers.

    A beginning that holds a restart is cut before it, so that every correction that is counted is
    the continuing model's own.

    Args:
        source: The log whose answers are continued: a steered one, or for the mirror an
            unsteered one.
        characters: Length of the beginning that is taken from each answer (2026: 1,100).
        mirror: Continue on-topic beginnings with the boost on.
        strength: For the mirror, as in `esr`.
        seed: Of searches for strengths that the mirror lacks.
        prior: Of these searches, as in `calibrate`.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
    """
    setup = Setup.open()
    responses, origin = read_responses(source)
    wanted = "unsteered" if mirror else "steered"
    if any(one.trial.condition != wanted for one in responses):
        raise EsrError(f"{source} holds trials that are not {wanted}: name another log as source=.")
    setup.provider.check_latents(list({one.trial.latent for one in responses}))
    planned = [_continued(one, characters, mirror) for one in responses]
    plan = Plan([one for one in planned if one.prefill], origin)
    if mirror:
        draw = Draw(None, None, 1, strength, None, seed, prior)
        plan = replace(setup.restrengthened(plan.planned, draw), source=origin)
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "prefill_mirror" if mirror else "prefill_control",
        name="esr-prefill-mirror" if mirror else "esr-prefill",
        condition="on-topic prefill, steered" if mirror else "steered prefill, no steering",
        holistic=holistic,
        rejudge=rejudge,
    )


def _continued(one: Response, characters: int, mirror: bool) -> Planned:
    beginning = one.response[:characters]
    restarts = find_restarts(beginning, one.text)
    if restarts:
        beginning = beginning[: restarts[0].start]
    condition = "steered" if mirror else "unsteered"
    trial = one.trial.model_copy(
        update={"condition": condition, "strength": 0.0, "strength_found": None}
    )
    # Templates end in white space, and a beginning that ends in it makes an unusual next token.
    return Planned(trial, one.text, beginning.rstrip())
