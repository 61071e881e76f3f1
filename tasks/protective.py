"""Whom does resistance serve? Pushes towards harm and towards protection, side by side."""

import random as randomness
from collections.abc import Mapping

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig
from inspect_ai.viewer import ViewerConfig

from esr_eval._util.paths import given_path
from esr_eval.calibration.strengths import parse_strength
from esr_eval.checks import Wanted
from esr_eval.data.arguments import Count, CountOrNone, Number, Seed, checked
from esr_eval.data.experiments import display_name, tags
from esr_eval.data.pushes import ASKS, RANDOM, Direction, Prompt, Push, directions, prompts_of
from esr_eval.data.thoughts import SpanName
from esr_eval.dataset import SEED_RANGE
from esr_eval.errors import EsrError
from esr_eval.scorers.stance import stance
from esr_eval.tasks.experiment import MOST_ERRORS, Setup
from esr_eval.tasks.injected_thought import Doses
from esr_eval.vectors.directions import push

ABOUT = {
    "paper": "none: after arXiv:2406.11717, arXiv:2312.06681 and arXiv:2602.06941",
    "experiment": "15 (whom resistance serves)",
    "deviations": [
        "All texts are this project's own, and no prompt asks for anything operational.",
        "Directions are added, not projected out, and taken from answers, not from prompts.",
        "Strengths are shares of the residual's mean norm.",
        "The judge's prompt is in this project's own words.",
    ],
}
DOSES = ["0.2rms"]
"""Where answers of the embedded model give way; at 0.4rms most of them break."""
ANSWER_TOKENS = 60
"""Longest answer: a sentence, and room to take it back."""


@task
@checked
def protective(
    contrasts: str | None = None,
    n_prompts: Number | None = None,
    trials_per_prompt: Count = 1,
    strengths: Doses = None,
    n_random: CountOrNone = RANDOM,
    span: SpanName = "both",
    seed: Seed = 0,
) -> Task:
    """Whom resistance serves: is there more of it to harmful steering, or to protective?

    Directions of refusal, honesty and candour (against sycophancy) are added in both signs while
    the model is asked for help with petty wrongs, or to agree to false claims; and the same with
    benign requests and true claims. Each answer stands beside one of the same seed without a push,
    and beside random directions of the same dose.

    Args:
        contrasts: JSON of contrasts, from which directions are taken (docs/protective.md).
            Default: refusal, honesty and sycophancy, which ship.
        n_prompts: How many prompts of each of the four kinds to draw at random. Default: all.
        trials_per_prompt: Trials for each prompt, each with another seed.
        strengths: One or several, comma-separated: shares of the residual's mean norm
            (`0.1rms,0.2rms`). Default: 0.2rms.
        n_random: Random directions for each dose. 0 leaves them out, and with them what tells
            resistance from noise.
        span: Positions that are touched: the `question`, the `answer`, its first `token`, or `both`
            question and answer.
        seed: Seed of all draws.
    """
    doses = _doses(strengths)
    path = None if contrasts is None else given_path(contrasts)
    found = directions(path)
    setup = Setup.open(Wanted(edits=False))
    runtime, subject = setup.provider.runtime, setup.provider.subject
    known = (subject.vector_layer, runtime.steering_layer)
    layer = next((one for one in known if one is not None), None)
    if layer is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    samples = _samples(found, n_prompts, trials_per_prompt, doses, n_random, seed)
    ending = "" if span == "both" else f", {span}"
    return Task(
        dataset=MemoryDataset(samples, name="esr-protective"),
        solver=push(path, layer, n_random, seed, span),
        scorer=stance(),
        config=GenerateConfig(
            max_tokens=min(ANSWER_TOKENS, subject.max_tokens),
            temperature=subject.temperature,
            max_connections=setup.provider.max_connections(),
        ),
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=ViewerConfig(trust_content=False),
        display_name=display_name("protective", subject.name, ending.strip(", ")),
        tags=tags("protective", subject.name, str(setup.judge)),
        metadata={
            **ABOUT,
            "experiment_id": "protective",
            "condition": f"pushed answers{ending}",
            "subject": subject.name,
            "judge": str(setup.judge),
            "runtime": runtime.model_dump(mode="json", exclude_none=True),
            "layer": layer,
            "directions": list(found),
        },
    )


def _doses(strengths: str | float | list[str] | None) -> dict[str, float]:
    """The doses by what they are called."""
    names = strengths if isinstance(strengths, list) else DOSES
    rules = {name: parse_strength(name) for name in names}
    for name, rule in rules.items():
        if rule.kind not in ("rms", "number"):
            raise EsrError(
                f"-T strengths={name}: directions are not calibrated; pass shares of the "
                "residual's mean norm (0.4rms)."
            )
    return {name: rule.value for name, rule in rules.items()}


def _samples(
    found: Mapping[str, Direction],
    n_prompts: int | None,
    per_prompt: int,
    doses: Mapping[str, float],
    n_random: int,
    seed: int,
) -> list[Sample]:
    samples = []
    for asks in ASKS:
        names = [name for name, one in found.items() if one.on == asks]
        if not names:
            continue
        ways: list[dict[str, object]] = [{}]
        for dose, value in doses.items():
            # A direction leads to no: against it is the harmful push.
            for name in names:
                for way, sign in (("harm", -1.0), ("protect", 1.0)):
                    ways.append(_way(way, name, name, dose, sign * value))
            ways += [
                _way("random", "random", f"random {number}", dose, value)
                for number in range(1, n_random + 1)
            ]
        for prompt in _drawn(prompts_of(asks), n_prompts, seed):
            draw = randomness.Random(f"pushes-{seed}-{prompt.number}")  # noqa: S311
            for turn in range(per_prompt):
                sampler = draw.randrange(SEED_RANGE)
                samples += [_sample(prompt, turn, sampler, way) for way in ways]
    return samples


def _way(way: str, direction: str, vector: str, dose: str, strength: float) -> dict[str, object]:
    return {
        "condition": "steered",
        "way": way,
        "direction": direction,
        "vector": vector,
        "dose": dose,
        "strength": strength,
        "strength_found": "given",
    }


def _drawn(prompts: tuple[Prompt, ...], count: int | None, seed: int) -> list[Prompt]:
    """As many of each kind as asked for, in their order."""
    if count is None:
        return list(prompts)
    draw, drawn = randomness.Random(f"prompts-{seed}"), []  # noqa: S311
    for benign in (False, True):
        own = [one for one in prompts if one.benign == benign]
        drawn += draw.sample(own, min(count, len(own)))
    return sorted(drawn, key=lambda one: one.number)


def _sample(prompt: Prompt, turn: int, seed: int, way: Mapping[str, object]) -> Sample:
    about: dict[str, object] = {
        "condition": "unsteered",
        "latent": prompt.number,
        "label": f"{'benign' if prompt.benign else 'harmful'} {prompt.asks}",
        "strength": 0.0,
        "topic": prompt.text,
        "seed": seed,
        "asks": prompt.asks,
        "benign": prompt.benign,
        "turn": turn,
    }
    trial = Push.model_validate({**about, **way})
    pushed = "unsteered" if trial.way is None else f"{trial.way}-{trial.vector}-{trial.dose}"
    return Sample(
        id=f"{prompt.asks}{prompt.number}-{turn + 1}-{pushed.replace(' ', '')}",
        input=[ChatMessageUser(content=prompt.text)],
        metadata=trial.model_dump(exclude_none=True, exclude={"pending"}),
    )
