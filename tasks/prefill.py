"""Prefill control and its mirror (2026): noticing bad text, or resisting the boost?"""

from inspect_ai import Task, task

from esr_eval.data.arguments import Flag, LogFile, Number, Strength, checked
from esr_eval.dataset import Latent, Planned
from esr_eval.errors import EsrError
from esr_eval.logs.replay import Response, read_responses
from esr_eval.scorers.phrases import find_restarts
from esr_eval.tasks.experiment import Bench, Plan, experiment

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "experiment": "11 (prefill control, and its mirror)",
    "deviations": ["The graded response is the given beginning and what the model adds to it."],
}


@task
@checked
def prefill_control(
    source: LogFile,
    characters: Number = 1100,
    mirror: Flag = False,
    strength: Strength = "calibrated",
    holistic: Flag = False,
) -> Task:
    """The unsteered model continues steered answers; mirrored, the steered one unsteered answers.

    A beginning that holds a restart is cut before it, so that every correction that is counted is
    the continuing model's own.

    Args:
        source: The log whose answers are continued: a steered one, or for the mirror an
            unsteered one.
        characters: Length of the beginning that is taken from each answer (2026: 1,100).
        mirror: Continue on-topic beginnings with the boost on.
        strength: For the mirror: `calibrated`, a number, or a multiple of the calibrated.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
    """
    bench = Bench.open()
    responses, origin = read_responses(source)
    wanted = "unsteered" if mirror else "steered"
    if any(one.trial.condition != wanted for one in responses):
        raise EsrError(f"{source} holds trials that are not {wanted}: name another log as source=.")
    latents = {one.trial.latent: one.trial.label for one in responses}
    bench.provider.check_latents(list(latents))
    strengths = (
        bench.strengths(strength, [Latent(index=i, label=label) for i, label in latents.items()])
        if mirror
        else dict.fromkeys(latents, 0.0)
    )
    planned = [_continued(one, characters, mirror, strengths) for one in responses]
    plan = Plan([one for one in planned if one.prefill], origin)
    return experiment(
        bench,
        plan,
        version=VERSION,
        paper=PAPER,
        name="esr-prefill-mirror" if mirror else "esr-prefill",
        experiment_id="prefill_mirror" if mirror else "prefill",
        condition="on-topic prefill, steered" if mirror else "steered prefill, no steering",
        holistic=holistic,
    )


def _continued(
    one: Response, characters: int, mirror: bool, strengths: dict[int, float]
) -> Planned:
    beginning = one.response[:characters]
    restarts = find_restarts(beginning)
    if restarts:
        beginning = beginning[: restarts[0].start]
    trial = one.trial.model_copy(
        update={
            "condition": "steered" if mirror else "unsteered",
            "strength": strengths[one.trial.latent],
        }
    )
    # Templates end in white space, and a beginning that ends in it makes an unusual next token.
    return Planned(trial, one.text, beginning.rstrip())
