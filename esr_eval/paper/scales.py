"""How much of the paper a run does: enough to see it work, to see an effect, or all of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes of all experiments.

    Attributes:
        latents: Latents of the main run and all its replays.
        trials: Trials for each of them.
        sweep: Levels, latents and trials per latent of the boost sweep.
        answers: Answers to each of the tasks that detectors are found on.
        random_sets: Sets of random latents that are ablated.
        vectors: Trials for each concept vector.
        held_out: Trials per latent on the held-out questions.
        prefill: Characters of each answer that the other condition continues.
        cross_judge: Stored responses that every further judge sees.
        episodes: Episodes whose activations are read, and as many unsteered answers.
    """

    latents: int
    trials: int
    sweep: tuple[int, int, int]
    answers: int
    random_sets: int
    vectors: int
    held_out: int
    prefill: int
    cross_judge: int
    episodes: int


SCALES = {
    # The embedded subject answers in 120 tokens: a beginning of 1,100 characters would be all.
    "tiny": Scale(12, 4, (8, 3, 2), 2, 3, 2, 3, 160, 60, 24),
    "small": Scale(30, 5, (8, 10, 5), 5, 3, 5, 5, 1100, 300, 60),
    "full": Scale(500, 5, (8, 25, 10), 10, 3, 40, 5, 1100, 1000, 150),
}
"""By name; full is the paper's."""
