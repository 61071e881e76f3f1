"""Discovery of off-topic detectors (paper, appendix on detectors): tasks with others' answers."""

from typing import Literal

from inspect_ai import Task, task
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState
from inspect_ai.viewer import ViewerConfig

from esr_eval.data.arguments import Count, Seed, Topics, checked
from esr_eval.data.experiments import display_name, tags
from esr_eval.dataset import PromptSet, choose_prompts
from esr_eval.detectors.pairs import COUNTS, MISMATCHED_ANSWER, Pairing, paired_dataset, read_pairs
from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.scores import headlines
from esr_eval.solvers import model_under_test
from esr_eval.tasks.experiment import MOST_ERRORS, Protocol, feature_layer

PROTOCOL = Protocol(
    "3 (off-topic detectors: discovery)",
    "The number of answers to each task is a parameter, each with a derangement of its own.",
    "The first positions that the subject never edits are not read either (skip_first).",
)


@task
@checked
def detectors(
    prompts: PromptSet = "detector_discovery",
    topics: Topics = None,
    answers_per_task: Count = 5,
    positions: Literal["all", "generated"] = "all",
    seed: Seed = 0,
) -> Task:
    """Which latents are silent when an answer fits its task and active when it does not?

    Every task is answered unsteered; the whole SAE is read at the feature layer over the task with
    its own answer (matched) and with another task's (mismatched). The detectors are written beside
    the log when it ends (detectors_LOG.json), and by `esr-eval detectors LOG` otherwise chosen.

    Args:
        prompts: Set of tasks: detector_discovery (20), main (38) or held_out (20).
        topics: Topics of that set to ask about. Default: all.
        answers_per_task: Answers to each task, each with a seed of its own.
        positions: `all` reads task and answer, as the paper does; `generated` the answer alone.
        seed: Seed of the answers and of their pairing.
    """
    _, provider = model_under_test()
    provider.preflight()
    subject, runtime = provider.subject, provider.runtime
    layer = feature_layer(runtime)
    asked = choose_prompts(topics, prompts)
    return Task(
        dataset=paired_dataset(asked, answers_per_task, seed, "esr-detectors"),
        solver=read_pairs(layer, positions),
        scorer=activity(),
        config=GenerateConfig(
            max_tokens=subject.max_tokens,
            temperature=subject.temperature,
            max_connections=provider.max_connections(),
        ),
        fail_on_error=MOST_ERRORS,
        viewer=ViewerConfig(trust_content=False),
        version=PROTOCOL.version,
        display_name=display_name("detectors", subject.name),
        tags=tags("detectors", subject.name),
        metadata={
            **PROTOCOL.about,
            "experiment_id": "detectors",
            "condition": f"{prompts}, {positions} positions",
            "subject": subject.name,
            "runtime": runtime.model_dump(mode="json", exclude_none=True),
            "layer": layer,
            "positions": positions,
        },
    )


_SHOWN = (
    *("active_matched", "active_mismatched", "only_matched", "only_mismatched"),
    *("matched_tokens", "mismatched_tokens"),
)


@scorer(metrics=[headlines(_SHOWN, ())])
def activity() -> Scorer:
    """How many latents fire on the task with its own answer, with the other's, with only one.

    No judge is asked. Which latents they are lies beside the log, see `esr-eval detectors`.
    """

    async def score(state: TaskState, target: Target) -> Score:
        counts = state.store.get(COUNTS)
        if counts is None:
            return Score.unscored(
                reason="scoring_failed", explanation="The pair of this sample was never read."
            )
        pairing = state.metadata_as(Pairing)
        other = plain(str(state.store.get(MISMATCHED_ANSWER)), 400)
        return Score(
            value=counts,
            answer=f"{counts['only_mismatched']} only with the other answer",
            explanation=(
                f"{counts['active_matched']} latents fire with the task's own answer, "
                f"{counts['active_mismatched']} with an answer about "
                f"“{plain(pairing.partner_topic)}”:\n\n{other}"
            ),
        )

    return score
