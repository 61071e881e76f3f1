"""Tasks paired with other tasks' answers: the samples of the search for off-topic detectors."""

import random
import re
from collections.abc import Sequence

from inspect_ai.dataset import MemoryDataset, Sample
from pydantic import BaseModel, ConfigDict, Field

from esr_eval.dataset import SEED_RANGE, Prompt
from esr_eval.errors import EsrError


class Pairing(BaseModel):
    """A task's own answer, and the other task whose answer is put in its place.

    Stored flat in `Sample.metadata`; the task itself is the sample's input.
    """

    model_config = ConfigDict(frozen=True)

    topic: str = Field(description="What the task asks about.")
    answer: int = Field(ge=0, description="Which of the task's answers.")
    seed: int = Field(ge=0, description="Seed of the sampler for this answer.")
    partner_topic: str = Field(description="Topic whose answer makes the mismatched pair.")
    partner_text: str = Field(description="The words that ask for that answer.")
    partner_seed: int = Field(ge=0, description="Seed of the sampler for that answer.")


def derangement(count: int, seed: str) -> list[int]:
    """A permutation in which nothing stays in place (a random single cycle, by Sattolo).

    Raises:
        EsrError: There are fewer than two things.
    """
    if count < 2:
        raise EsrError("Mismatched pairs need two tasks or more: name more topics.")
    draw = random.Random(seed)  # noqa: S311
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = draw.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def paired_dataset(
    asked: Sequence[Prompt], answers_per_task: int, seed: int, name: str
) -> MemoryDataset:
    """One sample for every task and answer, with a partner from a derangement of the tasks.

    An answer's seed depends on `seed`, its task and its number alone. Every answer stands in one
    matched pair and, with another task, in one mismatched pair.

    Args:
        asked: The tasks.
        answers_per_task: Answers to each; every answer number has a derangement of its own.
        seed: Of the answers and derangements.
        name: Of the dataset.

    Raises:
        EsrError: There are too few tasks or answers.
    """
    if answers_per_task < 1:
        raise EsrError(f"answers_per_task={answers_per_task} leaves nothing to read.")
    samples = []
    for answer in range(answers_per_task):
        seeds = [_answer_seed(seed, prompt, answer) for prompt in asked]
        order = derangement(len(asked), f"derangement-{seed}-{answer}")
        for at, prompt in enumerate(asked):
            partner = order[at]
            pairing = Pairing(
                topic=prompt.topic,
                answer=answer,
                seed=seeds[at],
                partner_topic=asked[partner].topic,
                partner_text=asked[partner].text,
                partner_seed=seeds[partner],
            )
            slug = re.sub(r"[^a-z0-9]+", "_", prompt.topic.lower()).strip("_")
            samples.append(
                Sample(id=f"{slug}-{answer}", input=prompt.text, metadata=pairing.model_dump())
            )
    return MemoryDataset(samples, name=name)


def _answer_seed(seed: int, prompt: Prompt, answer: int) -> int:
    return random.Random(f"answer-{seed}-{prompt.topic}-{answer}").randrange(SEED_RANGE)  # noqa: S311
