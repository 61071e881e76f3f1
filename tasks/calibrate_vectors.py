"""Strength per concept vector: bisect to a first score of 30, as for latents."""

import math
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.checks import Wanted, open_judge
from esr_eval.data.arguments import CountOrNone, Flag, Method, Seed, checked, with_method
from esr_eval.scorers.scores import headlines
from esr_eval.solvers import VectorSource, model_under_test
from esr_eval.tasks.calibrate import calibration_task, no_strength, of_method
from esr_eval.vectors.file import (
    VECTOR_STRENGTH,
    VectorStrength,
    bisect_vector,
    default_vectors,
    read_vectors,
    vector_prior,
)

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "section": "appendix on boost calibration (probabilistic bisection), for concept vectors",
    "deviations": ["One prior for every model, in units of the mean residual norm."],
}


@task
@checked
def calibrate_vectors(
    vectors: str | None = None,
    prior: dict[str, Any] | None = None,
    method: Method = None,
    check_samples: CountOrNone = 4,
    seed: Seed = 0,
    fresh: Flag = False,
) -> Task:
    """Find every vector's strength: where first attempts score 30 of 100.

    Run it as `esr-eval vectors calibrate FILE --model esr/NAME`, which writes the strengths into
    the file. Interrupted, the same command goes on where it stopped.

    Args:
        vectors: File made by `esr-eval vectors extract`. Default: the one shipped for the subject.
        prior: Changes to the prior and effort, e.g. {"samples_per_round": 5}; its strengths are in
            units of the mean residual norm.
        method: `paper` or `curve`, as in `calibrate`.
        check_samples: Fresh responses at the final strength; no part of the search.
        seed: Seed of the rounds' tasks and samplers.
        fresh: Search from the start even where a search with this seed was interrupted.
    """
    model, provider = model_under_test(temperature="vectors are calibrated at the subject's")
    grader = open_judge(str(model), provider, Wanted(edits=False))
    subject = provider.subject
    file = read_vectors(vectors or default_vectors(subject))
    file.check_fits(provider.runtime, subject)
    whole = vector_prior(subject, with_method(prior, method))
    samples = [
        Sample(
            id=concept.name,
            input=f"Find the strength of the vector '{concept.name}'.",
            metadata={"vector_index": index, "concept": concept.name},
        )
        for index, concept in enumerate(file.info.concepts)
    ]
    source = VectorSource(file.path, file.sha256, file.info.layer)
    return calibration_task(
        provider,
        grader,
        MemoryDataset(samples, name="esr-vector-strengths"),
        bisect_vector(source, whole, subject.temperature, check_samples, seed, fresh),
        vector_strength(),
        VERSION,
        {
            **of_method(PAPER, whole),
            "prior": whole.model_dump(mode="json"),
            "temperature": subject.temperature,
            "vectors": {"path": file.path, "sha256": file.sha256},
        },
    )


@scorer(metrics=[headlines(("strength", "achieved_score"), ())])
def vector_strength() -> Scorer:
    """The vector's strength, and the score that it achieves."""

    async def score(state: TaskState, target: Target) -> Score:
        data = state.store.get(VECTOR_STRENGTH)
        if data is None:
            return no_strength()
        found = VectorStrength.model_validate(data)
        achieved = math.nan if found.achieved_score is None else found.achieved_score
        return Score(
            value={"strength": found.strength, "achieved_score": achieved},
            answer=f"{found.strength:.4g}",
        )

    return score
