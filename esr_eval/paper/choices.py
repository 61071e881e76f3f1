"""What decides a run of the paper: its scale, and what it takes from the user."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esr_eval.calibration.bisection import responses_per_latent
from esr_eval.dataset import load_latents
from esr_eval.errors import EsrError
from esr_eval.paper.run import EvalSet, responses_to_calibrate, uncalibrated_latents
from esr_eval.provider.arguments import ModelArgs
from esr_eval.subjects import Subject
from esr_eval.vectors.file import default_vectors, read_vectors

OFFLINE_SECOND_JUDGE = "esr-judge/lexical"
"""The further judge of a subject whose own judge is the offline one."""


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


@dataclass(frozen=True)
class Choices:
    """What decides the run beside the subject.

    Attributes:
        scale: Sizes.
        seed: Of all draws.
        latents: File of labelled latents; None takes the subject's.
        detectors: Detector set to ablate; None takes the run's own discovery.
        vectors: File of concept vectors; None takes the subject's.
        n_vectors: How many vectors there are; 0 leaves the experiment out.
        graders: Further judges for the cross-judge experiment; none leaves it out.
        tuned: Whether there is a fine-tuned subject; without one its experiment is left out.
        uncalibrated: Responses that the calibration still takes, by step.
    """

    scale: Scale
    seed: int = 0
    latents: str | None = None
    detectors: str | None = None
    vectors: str | None = None
    n_vectors: int = 0
    graders: tuple[str, ...] = ()
    tuned: bool = False
    uncalibrated: Mapping[str, int] | None = None


def choose(
    run: EvalSet,
    *,
    scale: str,
    seed: int,
    latents: str | None,
    detectors: str | None,
    vectors: str | None,
    graders: Sequence[str],
) -> Choices:
    """Check what the user asked for and find what each step will take; loads nothing.

    Raises:
        EsrError: The scale is unknown, or there are no latents, or too few.
    """
    if scale not in SCALES:
        raise EsrError(f"There is no scale '{scale}'; there are {', '.join(SCALES)}.")
    sizes = SCALES[scale]
    runtime = ModelArgs.parse(run.model_args).runtime(run.subject)
    available = load_latents(run.subject, latents, runtime)
    if sizes.latents > len(available):
        raise EsrError(
            f"The scale {scale} takes {sizes.latents} latents, but {run.subject.name} has "
            f"{len(available)} with a label: pass more of them (--latents FILE) or a smaller scale."
        )
    main = uncalibrated_latents(run, False, latents, sizes.latents, seed)
    sweep = uncalibrated_latents(run, False, latents, sizes.sweep[1], seed)
    each = responses_per_latent(run.subject)
    uncalibrated = {
        "calibrate": each * len(main),
        # Latents that both draws share are calibrated once.
        "calibrate_sweep": each * len(set(sweep) - set(main)),
    }
    if run.has_tuned:
        uncalibrated["calibrate_tuned"] = responses_to_calibrate(
            run, True, latents, sizes.latents, seed
        )
    return Choices(
        scale=sizes,
        seed=seed,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        n_vectors=_count_vectors(run.subject, vectors),
        graders=tuple(graders),
        tuned=run.has_tuned,
        uncalibrated=uncalibrated,
    )


def identity(run: EvalSet, choices: Choices) -> dict[str, Any]:
    """What must be the same for a run to go on from another's logs."""
    chosen = asdict(choices)
    del chosen["uncalibrated"]  # falls to nothing as the run goes on
    return {
        "model": run.subject.name,
        "judge": run.judge,
        "model_args": run.model_args,
        "adapter": run.adapter,
        "max_tokens": run.max_tokens,
        **chosen,
    }


def _count_vectors(subject: Subject, vectors: str | None) -> int:
    """How many vectors the run adds; 0 where the user names none and none are shipped."""
    if vectors is None:
        try:
            vectors = default_vectors(subject)
        except EsrError:
            return 0
    return len(read_vectors(vectors).info.concepts)
