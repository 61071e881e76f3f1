"""Contrastive vectors (2026): the main run with plain concept vectors instead of SAE latents."""

import random

from inspect_ai import Task, task

from esr_eval.checks import Wanted
from esr_eval.data.arguments import (
    Count,
    Flag,
    LogFile,
    Number,
    Seed,
    Share,
    Strength,
    Topics,
    checked,
)
from esr_eval.dataset import choose_prompts, draw_trials
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log
from esr_eval.solvers import VectorSource
from esr_eval.tasks.experiment import (
    Draw,
    Plan,
    Protocol,
    Setup,
    check_replayed,
    experiment,
    no_steering,
)
from esr_eval.vectors.file import VectorFile, default_vectors, read_vectors, vector_strengths

PROTOCOL = Protocol(
    "13 (contrastive vectors)",
    "The corpus of texts is this project's own, and so are its concepts.",
    "Vectors have the length of the mean residual at their layer.",
)


@task
@checked
def vectors(
    vectors: str | None = None,
    n_vectors: Number | None = None,
    trials_per_vector: Count = 5,
    strength: Strength = "calibrated",
    topics: Topics = None,
    steering: Flag = True,
    seed: Seed = 0,
    replay: LogFile | None = None,
    holistic: Flag = False,
    rejudge: Share = 0.0,
) -> Task:
    """The main experiment with a concept's vector added instead of a latent boosted.

    No SAE is involved. In the trials `latent` counts the vectors and `label` names the concept.

    Args:
        vectors: File made by `esr-eval vectors extract`. Default: the one shipped for the subject.
        n_vectors: How many of its vectors to draw at random. Default: all.
        trials_per_vector: Trials for each vector, each with another task and seed.
        strength: `calibrated` (per vector), a number in units of the mean residual norm at the
            vectors' layer, or a multiple of the calibrated (`1.5x`).
        topics: Topics to ask about, of the 38. Default: all.
        steering: false for the baseline: the same vectors, tasks and seeds, nothing added.
        seed: Seed of the draw of vectors, tasks and sampling seeds.
        replay: A log of this task whose trials are run again.
        holistic: Also score how the response as a whole improves, 0-10 (the second view).
        rejudge: Share of the responses that the judge scores again, blind: its own reliability.
    """
    setup = Setup.open(Wanted(edits=False))
    subject = setup.provider.subject
    file = read_vectors(vectors or default_vectors(subject))
    file.check_fits(setup.provider.runtime, subject)
    if replay is not None:
        check_replayed(n_vectors=n_vectors, topics=topics)
        plan = _replayed(replay, file, steering)
    else:
        draw = Draw(None, n_vectors, trials_per_vector, strength, topics, seed)
        plan = _drawn(setup, file, draw, steering)
    return experiment(
        setup,
        plan,
        PROTOCOL,
        "vectors",
        name="esr-vectors",
        condition="concept vectors" + no_steering(steering),
        vectors=VectorSource(file.path, file.sha256, file.info.layer),
        holistic=holistic,
        rejudge=rejudge,
        extra={
            "vectors": {
                "path": file.path,
                "sha256": file.sha256,
                **file.info.model_dump(mode="json", include={"layer", "mean_norm", "corpus"}),
            }
        },
    )


def _drawn(setup: Setup, file: VectorFile, draw: Draw, steering: bool) -> Plan:
    chosen, count = file.latents(), draw.n_latents
    if count is not None:
        if not 1 <= count <= len(chosen):
            raise EsrError(f"n_vectors={count}, but {file.path} holds {len(chosen)} vectors.")
        chosen = random.Random(f"vectors-{draw.seed}").sample(chosen, count)  # noqa: S311
    planned = draw_trials(
        chosen,
        vector_strengths(draw.strength, file, chosen, str(setup.judge)) if steering else {},
        choose_prompts(draw.topics),
        draw.trials_per_latent,
        draw.seed,
        "steered" if steering else "unsteered",
    )
    return Plan(
        [
            one._replace(trial=one.trial.model_copy(update={"vector": one.trial.label}))
            for one in planned
        ]
    )


def _replayed(log: str, file: VectorFile, steering: bool) -> Plan:
    found = replay_log(log, None if steering else "unsteered")
    known = {concept.name for concept in file.info.concepts}
    for one in found.planned:
        if one.trial.vector not in known:
            raise EsrError(
                f"The log {log} adds {one.trial.vector or 'no vectors'}, which {file.path} does "
                "not hold: replay a log of esr_eval/vectors with the same file."
            )
    return Plan(found.planned, found.source)
