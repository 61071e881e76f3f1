"""Strength of a concept vector: the same bisection that calibrates latents, on vectors.

Strengths are in units of the mean residual norm, so one prior serves every model.
"""

from collections.abc import Mapping
from typing import Any

from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, span
from pydantic import BaseModel, ConfigDict

from esr_eval.calibration.bisection import Bisection, Round
from esr_eval.calibration.search import round_plan
from esr_eval.calibration.store import calibration_prior
from esr_eval.dataset import Prompt, prompts
from esr_eval.scorers.grader import ask, grader_model
from esr_eval.solvers import VectorSource, steering_config
from esr_eval.spec import AddVector
from esr_eval.subjects import CalibrationPrior, Subject

FOUND = "vector_strength"
"""Key of the sample store."""

PRIOR = {"prior_mean": 0.4, "prior_std": 0.25, "lower": 0.0, "upper": 1.5}
"""In units of the mean residual norm. At 1.5 the vector outweighs the residual itself."""


class VectorStrength(BaseModel):
    """Where a search ended, and its rounds."""

    model_config = ConfigDict(frozen=True)

    strength: float
    achieved_score: float | None
    rounds: tuple[Round, ...]
    check: Round | None


def vector_prior(subject: Subject, changes: Mapping[str, Any] | None = None) -> CalibrationPrior:
    """The prior over strengths, with the effort that the subject's latents are calibrated with.

    Args:
        subject: Whose effort.
        changes: Fields of the prior that are to be others.

    Raises:
        EsrError: A changed field has no valid value.
    """
    return calibration_prior(subject, {**PRIOR, **(changes or {})})


@solver
def bisect_vector(
    vectors: tuple[str, str, int],
    prior: CalibrationPrior,
    temperature: float,
    check_samples: int,
    seed: int,
) -> Solver:
    """Search the strength of the sample's vector.

    Args:
        vectors: `VectorSource`: file, digest, layer.
        prior: Prior and effort.
        temperature: Of the responses.
        check_samples: Fresh responses at the final strength; no part of the search.
        seed: Seed of tasks and samplers.
    """
    source = VectorSource(*vectors)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        grader = grader_model(str(model))
        index, concept = state.metadata["vector_index"], state.metadata["concept"]

        async def first_score(strength: float, prompt: Prompt, sampler: int) -> float | None:
            """Score of the first attempt; None when it is not judged or nothing is attempted."""
            edit = AddVector(
                path=source.path,
                tensor=concept,
                sha256=source.sha256,
                strength=strength,
                layer=source.layer,
            )
            config = steering_config(
                model,
                edits=[edit],
                seed=sampler,
                max_tokens=prior.max_tokens,
                temperature=temperature,
            )
            output = await model.generate(prompt.text, config=config)
            if not output.completion.strip():
                return None
            verdict = await ask(grader, prompt.text, concept, output.completion)
            return verdict.attempts[0].score if verdict.attempts else None

        async def test(strength: float, number: int, samples: int) -> Round:
            async with span(f"round {number}: strength {strength:.4g}"):
                plan = round_plan(prompts(), samples, seed, index, number)
                scores = await collect(*(first_score(strength, *asked) for asked in plan))
            judged = tuple(score for score in scores if score is not None)
            return Round(boost=strength, scores=judged, unscored=len(scores) - len(judged))

        search = Bisection(prior=prior)
        while not (search.finished or search.failed):
            tested = await test(search.median, len(search.rounds), prior.samples_per_round)
            search = search.observe(tested.scores, tested.unscored)
        found = None
        if search.finished:
            check = await test(search.median, -1, check_samples) if check_samples else None
            found = VectorStrength(
                strength=search.median,
                achieved_score=check.mean if check else None,
                rounds=search.rounds,
                check=check,
            )
        state.store.set(FOUND, found.model_dump(mode="json") if found else None)
        said = f"Strength {found.strength:.4g}" if found else "No strength: nothing was judged."
        state.output = ModelOutput.from_content(str(model), said)
        state.messages.append(state.output.message)
        return state

    return solve
