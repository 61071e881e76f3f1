"""Judges on trial: one judge's verdicts on passages whose attempts are known."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, get_model
from inspect_ai.viewer import ViewerConfig

from esr_eval.data.arguments import Number, PassageFile, Seed, SplitName, checked
from esr_eval.data.passages import Passage, choose_passages, read_passages
from esr_eval.scorers.grader import grader_model
from esr_eval.scorers.passages import LABELLED, on_passage
from esr_eval.tasks.cross_judge import stored_response

EXPERIMENT = "passages"
VERSION = 1


@task
@checked
def passages(
    file: PassageFile | None = None,
    split: SplitName | None = None,
    n: Number | None = None,
    seed: Seed = 0,
) -> Task:
    """How well does a judge find and score attempts that are known?

    `esr-eval judges` runs it for several judges and prints their figures. Nothing is generated:
    `--model mockllm/model` will do, but for a judge that is the model under test.

    Args:
        file: Passages of your own, one JSON object a line. Default: those that ship.
        split: Only those of this split: dev, fresh, held_out, own.
        n: How many, drawn at random. Default: all.
        seed: Seed of the draw.
    """
    chosen = choose_passages(read_passages(file), split, n, seed)
    judge = grader_model(str(get_model()))
    return Task(
        dataset=MemoryDataset(
            [_sample(number, one) for number, one in enumerate(chosen)], name="esr-passages"
        ),
        solver=stored_response(),
        scorer=on_passage(),
        # Passages imitate what latents make of answers: nothing of it is rendered richly.
        viewer=ViewerConfig(trust_content=False),
        version=VERSION,
        metadata={"experiment_id": EXPERIMENT, "judge": str(judge)},
    )


def _sample(number: int, one: Passage) -> Sample:
    return Sample(
        id=f"{number:04}-{one.split}-{one.kind}",
        input=[ChatMessageUser(content=one.task), ChatMessageAssistant(content=one.text)],
        metadata={
            "passage": number,
            "subject": "passages",
            "split": one.split,
            "kind": one.kind,
            "label": one.label,
            LABELLED: [
                [start, attempt.score]
                for start, attempt in zip(one.starts(), one.attempts, strict=True)
            ],
        },
    )
