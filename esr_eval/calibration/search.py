"""One latent's strength search, run on a real model and judge.

Arithmetic is `bisection`'s, files are `store`'s; here is what lies between: which tasks a round
asks, and how its answers become evidence.
"""

import random
from collections.abc import Callable, Sequence

from inspect_ai.model import Model, ModelOutput, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import collect, display_counter, span

from esr_eval.calibration import store as strengths
from esr_eval.calibration.bisection import Bisection, Round
from esr_eval.calibration.record import Checkpoint, Setting, StrengthRecord
from esr_eval.dataset import SEED_RANGE, Latent, Prompt, prompts
from esr_eval.errors import EsrError
from esr_eval.scorers.grader import ask, grader_model
from esr_eval.solvers import runtime_of, steering_config, subject_of
from esr_eval.spec import Boost
from esr_eval.subjects import CalibrationPrior

RECORD, SEARCH, CACHED = "strength_record", "strength_search", "strength_cached"
"""Keys of the sample store."""


@solver
def bisect(
    prior: CalibrationPrior,
    temperature: float,
    check_samples: int,
    seed: int,
    fresh: bool,
    n_latents: int,
) -> Solver:
    """Search one latent's strength, or take it from the cache.

    Args:
        prior: Prior and effort.
        temperature: Of the responses.
        check_samples: Fresh responses at the final strength.
        seed: Seed of tasks and samplers.
        fresh: Search even where a strength is known.
        n_latents: How many latents there are in all, for the progress display.
    """
    rounds_done: dict[int, int] = {}

    def progress(latent: int, counted: int) -> None:
        rounds_done[latent] = counted
        display_counter("Rounds", f"{sum(rounds_done.values())}/{n_latents * prior.rounds}")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        grader = grader_model(str(model))
        latent = Latent.model_validate(
            {"index": state.metadata["latent"], "label": state.metadata["label"]}
        )
        setting = Setting.of(
            runtime_of(model),
            prior,
            str(grader),
            prompts=[prompt.text for prompt in prompts()],
            temperature=temperature,
        )
        key = setting.key(latent.index, latent.label)
        record = None if fresh else strengths.find_strength(key, subject_of(model).strengths)
        state.store.set(CACHED, record is not None)
        if record is not None:
            progress(latent.index, prior.rounds)
        else:

            def on_round(search: Bisection) -> None:
                state.store.set(SEARCH, search.to_json())
                progress(latent.index, search.counted)

            search, record = await search_strength(
                model,
                grader,
                latent,
                setting,
                prompts(),
                seed=seed,
                check_samples=check_samples,
                resume=not fresh,
                on_round=on_round,
            )
        state.store.set(RECORD, record.model_dump(mode="json") if record else None)
        text = (
            record.as_markdown()
            if record
            else f"No strength: {search.empty} rounds stayed unjudged."
        )
        state.output = ModelOutput.from_content(str(model), text)
        state.messages.append(state.output.message)
        return state

    return solve


def round_plan(
    asked: Sequence[Prompt], samples: int, seed: int, latent: int, number: int
) -> list[tuple[Prompt, int]]:
    """Tasks and sampling seeds of one round.

    They depend on nothing but the arguments, so that an interrupted search goes on exactly as it
    would have gone on, and one latent's rounds do not depend on the others'.
    """
    draw = random.Random(f"calibration-{seed}-{latent}-{number}")  # noqa: S311
    order: list[Prompt] = []
    while len(order) < samples:
        order += draw.sample(list(asked), len(asked))
    return [(prompt, draw.randrange(SEED_RANGE)) for prompt in order[:samples]]


async def search_strength(
    model: Model,
    grader: Model,
    latent: Latent,
    setting: Setting,
    asked: Sequence[Prompt],
    *,
    seed: int,
    check_samples: int,
    resume: bool,
    on_round: Callable[[Bisection], None],
) -> tuple[Bisection, StrengthRecord | None]:
    """Run the rounds that are left, and keep the record.

    Args:
        model: The model under test.
        grader: The judge.
        latent: Whose strength.
        setting: What the record is kept under.
        asked: Tasks to draw from.
        seed: Seed of tasks and samplers.
        check_samples: Fresh responses at the final strength, to state the score it achieves.
        resume: Whether to go on from an interrupted search's checkpoint.
        on_round: Told the state before the first and after every round.

    Returns:
        The final state, and the record; no record when too many rounds stayed without judgement.
    """
    key = setting.key(latent.index, latent.label)
    checkpoint = strengths.find_checkpoint(key, seed) if resume else None
    search = checkpoint.search if checkpoint else Bisection(prior=setting.prior)
    on_round(search)

    async def test(number: int, samples: int) -> Round:
        plan = round_plan(asked, samples, seed, latent.index, number)
        boost = search.median
        scores = await collect(
            *(
                _first_score(model, grader, latent, boost, setting, prompt, sampler)
                for prompt, sampler in plan
            )
        )
        judged = tuple(score for score in scores if score is not None)
        return Round(boost=boost, scores=judged, unscored=len(scores) - len(judged))

    while not (search.finished or search.failed):
        number = len(search.rounds)
        async with span(f"round {number + 1}: boost {search.median:.4g}"):
            tested = await test(number, setting.prior.samples_per_round)
        search = search.observe(tested.scores, tested.unscored)
        strengths.save_checkpoint(Checkpoint(key=key, seed=seed, search=search))
        on_round(search)
    if search.failed:
        # Kept, it would make every later try fail at once.
        strengths.drop_checkpoint(key)
        return search, None
    check = None
    if check_samples:
        async with span(f"check: boost {search.median:.4g}"):
            check = await test(-1, check_samples)
    record = StrengthRecord.of(setting, latent.index, latent.label, search, check=check, seed=seed)
    strengths.save(record)
    return search, record


async def _first_score(
    model: Model,
    grader: Model,
    latent: Latent,
    boost: float,
    setting: Setting,
    prompt: Prompt,
    sampler: int,
) -> float | None:
    """Score of the first attempt; None when it cannot be judged or nothing is attempted."""
    layer = runtime_of(model).steering_layer
    if layer is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    output = await model.generate(
        prompt.text,
        config=steering_config(
            model,
            edits=[Boost(latent=latent.index, strength=boost, layer=layer)],
            seed=sampler,
            max_tokens=setting.prior.max_tokens,
            temperature=setting.temperature,
        ),
    )
    if not output.completion.strip():
        return None
    verdict = await ask(grader, prompt.text, latent.label, output.completion)
    return verdict.attempts[0].score if verdict.attempts else None
