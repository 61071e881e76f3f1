"""Activations over stored answers (paper, self-correcting episodes and their statistics)."""

from collections.abc import Sequence

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState
from inspect_ai.viewer import ViewerConfig

from esr_eval.data.arguments import (
    Flag,
    LatentsOrSet,
    LogFile,
    Number,
    RuleName,
    Seed,
    checked,
)
from esr_eval.data.experiments import display_name, tags
from esr_eval.detectors.choice import load_detectors
from esr_eval.episodes.reading import BOOSTED, MEANS, Episode, Which, read_answer, read_episodes
from esr_eval.scorers.regions import regions
from esr_eval.scorers.scores import headlines
from esr_eval.tasks.experiment import MOST_ERRORS, Protocol, Setup, feature_layer

PROTOCOL = Protocol(
    "6 and 9 (activations over one episode; activation statistics)",
    "The stored answer is read as text: its tokens are those of the tokenizer, which need not "
    "be the very ones that were generated.",
    "Latents that were ablated while the answer was generated are not held while it is read.",
    "On-topic text counts only after off-topic text; on-topic text before it stands apart.",
)


@task
@checked
def activations(
    source: LogFile,
    baseline: LogFile | None = None,
    detectors: LatentsOrSet | None = None,
    backtracking: LatentsOrSet | None = None,
    which: Which = "multi_attempt",
    episodes: Number | None = None,
    controls: Flag = False,
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
        controls: Read as many steered answers without a restart beside those with one, of the same
            latents where there are such, off-topic ones first: latents that are as active in
            these track off-topic text, not its correction.
        rule: Which of a detector file's or log's sets: `silent` or `separability`.
        seed: Seed of the draw.
    """
    setup = Setup.open()
    runtime, subject = setup.provider.runtime, setup.provider.subject
    layer = feature_layer(runtime)
    given = {"detectors": detectors, "backtracking": backtracking}
    sets = {
        name: load_detectors(latents, runtime, rule)
        for name, latents in given.items()
        if latents is not None
    }
    steered = read_episodes(source, runtime, "steered", which, episodes, seed, controls)
    setup.provider.check_latents(
        [
            *(one.trial.latent for one in (*steered.chosen, *steered.controls)),
            *(latent for found in sets.values() for latent in found.latents),
        ]
    )
    answers, sources = list(steered.chosen), {"source": steered.source}
    count, beside = len(steered.chosen), len(steered.controls)
    if baseline is not None:
        plain = read_episodes(baseline, runtime, "unsteered", "all", count, seed)
        sources["baseline"] = plain.source
        # Ids pair trials across logs, so both logs may use the same.
        answers += [one._replace(id=f"{one.id}-unsteered") for one in plain.chosen]
    condition = f"{count} {_NAMES[steered.which]}, {len(answers) - count} unsteered"
    if controls:
        condition += f", {beside} steered without a restart"
    return Task(
        dataset=_dataset(answers, steered.controls),
        solver=read_answer({name: list(found.latents) for name, found in sets.items()}, layer),
        scorer=[regions(), answer_activity()],
        config=GenerateConfig(max_connections=setup.provider.max_connections()),
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=ViewerConfig(trust_content=False),
        version=PROTOCOL.version,
        display_name=display_name("activations", subject.name, condition),
        tags=tags("activations", subject.name, str(setup.judge)),
        metadata={
            **PROTOCOL.about,
            "experiment_id": "activations",
            "condition": condition,
            "subject": subject.name,
            "judge": str(setup.judge),
            "runtime": runtime.model_dump(mode="json", exclude_none=True),
            "layer": layer,
            "which": steered.which,
            "responses": steered.responses,
            "multi_attempt": steered.multi_attempt,
            **({"controls": beside, "controls_matched": steered.matched} if controls else {}),
            "latent_sets": {
                name: {"name": found.name, "latents": list(found.latents), "source": found.source}
                for name, found in sets.items()
            },
            "replay": sources,
        },
    )


_NAMES = {"multi_attempt": "multi-attempt answers", "all": "steered answers"}


def _dataset(answers: Sequence[Episode], controls: Sequence[Episode]) -> MemoryDataset:
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
                    **({"control": True} if control else {}),
                },
            )
            for one, control in (
                *((one, False) for one in answers),
                *((one, True) for one in controls),
            )
        ],
        name="esr-activations",
    )


_SHOWN = ("detectors", "backtracking", BOOSTED, "tokens")


@scorer(metrics=[headlines(_SHOWN, (), by="condition")])
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
