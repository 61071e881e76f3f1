"""Activations over stored answers (paper, self-correcting episodes and their statistics)."""

from collections.abc import Sequence

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, grouped, mean, scorer
from inspect_ai.solver import TaskState
from inspect_ai.viewer import ViewerConfig

from esr_eval.data.arguments import LatentsOrSet, LogFile, Number, RuleName, Seed, checked
from esr_eval.detectors.choice import load_detectors
from esr_eval.episodes.choice import Episode, Which, read_episodes
from esr_eval.episodes.reading import BOOSTED, MEANS, read_answer
from esr_eval.errors import EsrError
from esr_eval.scorers.regions import regions
from esr_eval.tasks.experiment import MOST_ERRORS, Bench

VERSION = 1
PAPER = {
    "paper": "arXiv:2602.06941",
    "experiment": "6 and 9 (activations over one episode; activation statistics)",
    "deviations": [
        "The stored answer is read as text: its tokens are those of the tokenizer, which need not "
        "be the very ones that were generated.",
        "Latents that were ablated while the answer was generated are not held while it is read.",
        "On-topic text counts only after off-topic text; on-topic text before it stands apart.",
    ],
}


@task
@checked
def activations(
    source: LogFile,
    baseline: LogFile | None = None,
    detectors: LatentsOrSet | None = None,
    backtracking: LatentsOrSet | None = None,
    which: Which = "multi_attempt",
    episodes: Number | None = None,
    rule: RuleName = "silent",
    seed: Seed = 0,
) -> Task:
    """Per-token activations of detectors, backtracking latents and the boosted latent.

    Each stored answer is read in one forward pass with its boost on; nothing is generated. A judge
    marks where off-topic, correction and on-topic text begin. `esr-eval activations LOG` prints
    the statistics by region.

    Args:
        source: A steered log whose answers are read.
        baseline: An unsteered log to compare with; as many of its answers are read, no boost on.
        detectors: Latents to read: a detector file, a log of `detectors`, a published set, or
            indices. Default: none.
        backtracking: Further latents, in the same ways, such as `backtracking_16` (llama-70b).
        which: `multi_attempt` answers alone (by the log's judge or the phrase detector), `all`,
            or `auto`: the former where there are any, else all.
        episodes: Most answers to read; more are drawn from at random. Default: all.
        rule: Which of a detector file's or log's sets: `silent` or `separability`.
        seed: Seed of the draw.
    """
    bench = Bench.open()
    runtime, subject = bench.provider.runtime, bench.provider.subject
    if runtime.feature_layer is None:
        raise EsrError("Say which layer the SAE was trained on, to read there: -M feature_layer=.")
    given = {"detectors": detectors, "backtracking": backtracking}
    sets = {
        name: load_detectors(latents, runtime, rule)
        for name, latents in given.items()
        if latents is not None
    }
    steered = read_episodes(source, runtime, "steered", which, episodes, seed)
    bench.provider.check_latents(
        [
            *(one.trial.latent for one in steered.chosen),
            *(latent for found in sets.values() for latent in found.latents),
        ]
    )
    answers, sources = list(steered.chosen), {"source": steered.source}
    if baseline is not None:
        plain = read_episodes(baseline, runtime, "unsteered", "all", len(answers), seed)
        sources["baseline"] = plain.source
        # Ids pair trials across logs, so both logs may use the same.
        answers += [one._replace(id=f"{one.id}-unsteered") for one in plain.chosen]
    count = len(steered.chosen)
    return Task(
        dataset=_dataset(answers),
        solver=read_answer(
            {name: list(found.latents) for name, found in sets.items()}, runtime.feature_layer
        ),
        scorer=[regions(), answer_activity()],
        config=GenerateConfig(max_connections=bench.provider.max_connections()),
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=ViewerConfig(trust_content=False),
        version=VERSION,
        metadata={
            **PAPER,
            "experiment_id": "activations",
            "condition": f"{count} {_NAMES[steered.which]}, {len(answers) - count} unsteered",
            "subject": subject.name,
            "judge": str(bench.judge),
            "runtime": runtime.model_dump(mode="json", exclude_none=True),
            "layer": runtime.feature_layer,
            "which": steered.which,
            "responses": steered.responses,
            "multi_attempt": steered.multi_attempt,
            "latent_sets": {
                name: {"name": found.name, "latents": list(found.latents), "source": found.source}
                for name, found in sets.items()
            },
            "replay": sources,
        },
    )


_NAMES = {"multi_attempt": "multi-attempt answers", "all": "steered answers"}


def _dataset(answers: Sequence[Episode]) -> MemoryDataset:
    return MemoryDataset(
        [
            Sample(
                id=one.id,
                input=[
                    ChatMessageUser(content=one.text),
                    ChatMessageAssistant(content=one.response),
                ],
                metadata={
                    **one.trial.model_dump(exclude_none=True),
                    "has_restart": one.multi_attempt,
                },
            )
            for one in answers
        ],
        name="esr-activations",
    )


@scorer(
    metrics={
        key: [grouped(mean(), "condition", all=False)]
        for key in ("detectors", "backtracking", BOOSTED, "tokens")
    }
)
def answer_activity() -> Scorer:
    """Mean activation of each set of latents over the answer, and its length in tokens.

    No judge is asked. NaN for a set that is not read.
    """

    async def score(state: TaskState, target: Target) -> Score:
        means = state.store.get(MEANS)
        if means is None:
            return Score.unscored(
                reason="scoring_failed", explanation="This answer was never read."
            )
        keys = ("detectors", "backtracking", BOOSTED, "tokens")
        return Score(
            value={key: means.get(key, float("nan")) for key in keys},
            answer=", ".join(f"{key} {value:.4g}" for key, value in means.items()),
        )

    return score
