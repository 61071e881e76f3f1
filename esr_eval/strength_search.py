"""One latent's strength search, run on a real model and judge.

Arithmetic is `esr_eval.calibration`'s, files are `esr_eval.strengths`'s; here is what lies between:
which tasks a round asks, and how its answers become evidence.
"""

import random
from collections.abc import Callable, Sequence

from inspect_ai.model import Model
from inspect_ai.util import collect, span

from esr_eval import strengths
from esr_eval.calibration import Bisection, Round
from esr_eval.dataset import SEED_RANGE, Latent, Prompt
from esr_eval.errors import EsrError
from esr_eval.scorers.grader import ask
from esr_eval.solvers import runtime_of, steering_config
from esr_eval.spec import Boost
from esr_eval.strength_record import Checkpoint, Setting, StrengthRecord


def round_plan(
    prompts: Sequence[Prompt], samples: int, seed: int, latent: int, number: int
) -> list[tuple[Prompt, int]]:
    """Tasks and sampling seeds of one round.

    They depend on nothing but the arguments, so that an interrupted search goes on exactly as it
    would have gone on, and one latent's rounds do not depend on the others'.
    """
    draw = random.Random(f"calibration-{seed}-{latent}-{number}")  # noqa: S311
    order: list[Prompt] = []
    while len(order) < samples:
        order += draw.sample(list(prompts), len(prompts))
    return [(prompt, draw.randrange(SEED_RANGE)) for prompt in order[:samples]]


async def search_strength(
    model: Model,
    grader: Model,
    latent: Latent,
    setting: Setting,
    prompts: Sequence[Prompt],
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
        prompts: Tasks to draw from.
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
        plan = round_plan(prompts, samples, seed, latent.index, number)
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
    verdict = await ask(grader, prompt.text, latent.label, output.completion)
    return verdict.attempts[0].score if verdict.attempts else None
