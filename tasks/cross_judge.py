"""Cross-judge agreement (paper, experiment on judges): stored responses, judged by others too."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.viewer import ViewerConfig

from esr_eval._util.output import note
from esr_eval.data.arguments import Names, Number, Seed, Sources, Whole, checked
from esr_eval.data.experiments import display_name, tags
from esr_eval.errors import EsrError
from esr_eval.logs.replay import CROSS_JUDGE, Judged, choose_judged, read_judged
from esr_eval.scorers.agreement import (
    CLUSTER,
    RECORD,
    another_judge,
    judge_name,
    judge_of_record,
)
from esr_eval.scorers.grader import GRADER_ROLE, judge_model
from esr_eval.tasks.experiment import Protocol

PROTOCOL = Protocol(
    "7 (cross-judge)", "Which judges, and how many responses, are parameters (paper: 5, 1,000)."
)


@task
@checked
def cross_judge(
    source: Sources,
    graders: Names = GRADER_ROLE,
    n: Number = 1000,
    min_per_model: Whole = 100,
    seed: Seed = 0,
) -> Task:
    """Do other judges find several attempts in the same responses, and the same direction?

    Nothing is generated again and `--model` is never asked (`--model mockllm/model` will do): the
    responses and the verdict of the judge of record come from logs. All multi-attempt responses
    are judged, then random others. `esr-eval agreement LOG` compares all judges with each other.

    Args:
        source: Logs, comma-separated, or folders of logs.
        graders: Judges, comma-separated: PROVIDER/MODEL, or names bound with --model-role.
            Default: the one bound with --model-role grader=PROVIDER/MODEL.
        n: How many responses.
        min_per_model: Responses of each model at least, where it has as many and n leaves room.
        seed: Seed of the choice of responses.
    """
    wanted = graders.split(",") if isinstance(graders, str) else graders
    judges = [judge_model(name) for name in dict.fromkeys(name.strip() for name in wanted) if name]
    if not judges:
        raise EsrError("Name the judges: -T graders=PROVIDER/MODEL,PROVIDER/MODEL.")
    if len({judge_name(judge) for judge in judges}) < len(judges):
        raise EsrError("Two of the graders are the same model: name each once.")
    stored = read_judged(source)
    for line in stored.notes:
        note(line)
    chosen = choose_judged(stored.responses, n, min_per_model, seed)
    subjects = ", ".join(sorted({one.subject for one in chosen}))
    return Task(
        dataset=MemoryDataset([_sample(one) for one in chosen], name="esr-cross-judge"),
        solver=stored_response(),
        scorer=[judge_of_record(), *(another_judge(judge) for judge in judges)],
        # Judged text is whatever latents made of it: nothing of it is rendered richly.
        viewer=ViewerConfig(trust_content=False),
        version=PROTOCOL.version,
        display_name=display_name(CROSS_JUDGE, subjects),
        tags=tags(CROSS_JUDGE, subjects, "", *map(str, judges)),
        metadata={
            **PROTOCOL.about,
            "experiment_id": CROSS_JUDGE,
            "condition": "cross-judge",
            "subject": subjects,
            "judge": ", ".join(sorted({one.record.judge for one in chosen})),
            "graders": [str(judge) for judge in judges],
            "sources": stored.logs,
            "available": len(stored.responses),
            "left_out": stored.left_out,
            "logs_left_out": stored.notes,
        },
    )


@solver
def stored_response() -> Solver:
    """Take the sample's last message, the stored response, as the output; no model is asked."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output = ModelOutput.from_content(state.metadata["subject"], state.messages[-1].text)
        return state

    return solve


def _sample(one: Judged) -> Sample:
    trial = one.trial.model_dump(exclude_none=True)
    return Sample(
        id=one.id,
        input=[ChatMessageUser(content=one.text), ChatMessageAssistant(content=one.response)],
        metadata={
            **trial,
            "subject": one.subject,
            CLUSTER: f"{one.subject} {trial.get('vector', '')}{one.trial.latent}",
            RECORD: one.record._asdict(),
        },
    )
