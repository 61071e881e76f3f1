"""Strength per latent (paper, appendix on boost calibration): bisect to a first score of 30."""

import math
from typing import Annotated, Any

from inspect_ai import Task, task
from inspect_ai.dataset import Dataset, MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Solver, TaskState

from esr_eval.calibration.bisection import CHECK_SAMPLES, calibration_prior
from esr_eval.calibration.search import CACHED, RECORD, bisect
from esr_eval.calibration.store import StrengthRecord
from esr_eval.checks import Wanted, open_judge
from esr_eval.data.arguments import (
    NOT_NEGATIVE,
    CountOrNone,
    Flag,
    LatentsArgument,
    Method,
    Number,
    Prior,
    Seed,
    checked,
    with_method,
)
from esr_eval.data.experiments import display_name, tags
from esr_eval.dataset import Latent, file_of, labels_note, pick_latents
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers.scores import headlines
from esr_eval.selection.prepare import choose_latent
from esr_eval.solvers import model_under_test
from esr_eval.subjects import CalibrationPrior
from esr_eval.tasks.experiment import latents_to_choose

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "section": "appendix on boost calibration (probabilistic bisection)",
    "deviations": [
        "Fresh responses at the final strength state the score that it achieves (check_samples).",
        "A round in which nothing could be judged is repeated with other tasks, at most 3 times.",
    ],
}

BY_CURVE = (
    "method=curve: a posterior over curves of the score, in place of bisection (docs/strengths.md)."
)


@task
@checked
def calibrate(
    latents: LatentsArgument = None,
    n_latents: Number | None = None,
    prior: Prior = None,
    method: Method = None,
    temperature: Annotated[float, NOT_NEGATIVE] | None = None,
    check_samples: CountOrNone = CHECK_SAMPLES,
    seed: Seed = 0,
    fresh: Flag = False,
) -> Task:
    """Find every latent's strength: where first attempts score 30 of 100.

    One sample is one latent; raise `--max-samples` so that latents share batches. Strengths are
    kept as each latent ends, and `esr` finds them there.

    Args:
        latents: Indices (7,12,40) among the subject's labelled latents, or a file of labels (CSV
            index_in_sae,label, or a Neuronpedia export, also a folder of its batches). Default: the
            subject's own.
        n_latents: How many of them to draw at random. Default: all; of a whole SAE's labels 20,
            chosen in the run as in `esr`.
        prior: Changes to the subject's prior and effort, e.g. {"samples_per_round": 5}; `esr`
            finds the strengths only under the same ones.
        method: `paper` (bisection), or `curve`: a curve of scores, on 40 % of the responses.
            Default: the paper's.
        temperature: Of the responses. Default: the subject's.
        check_samples: Fresh responses at the final strength; no part of the search.
        seed: Seed of the draw of latents, and of the rounds' tasks and samplers.
        fresh: Search again even where a strength is known.
    """
    model, provider = model_under_test(temperature="pass -T temperature=")
    subject = provider.subject
    grader = open_judge(str(model), provider, Wanted(labels=True, latents=latents))
    whole = calibration_prior(subject, with_method(prior, method))
    wanted = latents_to_choose(provider, latents, n_latents)
    if wanted is None:
        chosen = pick_latents(subject, latents, n_latents, seed, provider.runtime)
        provider.check_latents([latent.index for latent in chosen])
    else:  # only counted until they are chosen
        chosen = [Latent(index=number, label="") for number in range(wanted)]
    samples = [
        Sample(
            id=f"latent-{latent.index}" if wanted is None else f"latent{latent.index + 1}",
            input=f"Find the strength of latent {latent.index} ({latent.label})."
            if wanted is None
            else f"Choose latent {latent.index + 1} of {wanted}, and find its strength.",
            metadata={"latent": latent.index, "label": latent.label},
        )
        for latent in chosen
    ]
    search = bisect(
        whole,
        subject.temperature if temperature is None else temperature,
        check_samples,
        seed,
        fresh,
        len(samples),
    )
    return calibration_task(
        provider,
        grader,
        MemoryDataset(samples, name="esr-latents"),
        search if wanted is None else [choose_latent(file_of(latents), wanted, seed), search],
        strength(),
        VERSION,
        {**of_method(PAPER, whole), **labels_note(subject, latents, provider.runtime)},
    )


def of_method(paper: dict[str, Any], prior: CalibrationPrior) -> dict[str, Any]:
    """What a log says of the paper's protocol where strengths are searched by this prior."""
    if prior.method == "paper":
        return paper
    return {**paper, "deviations": [*paper["deviations"], BY_CURVE]}


def calibration_task(
    provider: ESRModelAPI,
    grader: Model,
    dataset: Dataset,
    solver: Solver | list[Solver],
    scorer: Scorer,
    version: int,
    metadata: dict[str, Any],
) -> Task:
    """A task whose samples are strength searches; the log says whose and by which judge."""
    return Task(
        dataset=dataset,
        solver=solver,
        scorer=scorer,
        config=GenerateConfig(max_connections=provider.max_connections()),
        version=version,
        display_name=display_name("calibration", provider.subject.name),
        tags=tags("calibration", provider.subject.name, str(grader)),
        metadata={**metadata, "subject": provider.subject.name, "judge": str(grader)},
    )


def no_strength() -> Score:
    """The score of a sample whose search ended without one."""
    return Score.unscored(
        reason="grader_failed",
        explanation="Too many rounds stayed without a single judged response.",
    )


@scorer(metrics=[headlines(("strength", "achieved_score"), ("generations", "unscored", "cached"))])
def strength() -> Scorer:
    """The latent's strength, the score it achieves, and what finding it took."""

    async def score(state: TaskState, target: Target) -> Score:
        data = state.store.get(RECORD)
        if data is None:
            return no_strength()
        record = StrengthRecord.model_validate(data)
        achieved = record.achieved_score
        return Score(
            value={
                "strength": record.strength,
                "achieved_score": math.nan if achieved is None else achieved,
                "generations": record.generations,
                "unscored": record.unscored,
                "cached": int(state.store.get(CACHED)),
            },
            answer=f"{record.strength:.4g}",
            metadata={"key": record.key, "label": record.label},
        )

    return score
