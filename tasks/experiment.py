"""What every experiment shares: checks before anything loads, planned trials, the task itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from inspect_ai import Task
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.viewer import (
    SampleScoreView,
    ScoreColorScale,
    TaskSamplesColumn,
    TaskSamplesSort,
    TaskSamplesView,
    ViewerConfig,
)

from esr_eval.calibration.lookup import resolve_strengths
from esr_eval.checks import Wanted, open_judge
from esr_eval.data.arguments import check_choice
from esr_eval.data.experiments import ExperimentId
from esr_eval.data.trial import Condition
from esr_eval.dataset import (
    Latent,
    Planned,
    PromptSet,
    choose_prompts,
    draw_trials,
    labels_note,
    pick_latents,
    trials_dataset,
)
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers.attempts import attempts, grouped_metrics
from esr_eval.scorers.improvement import improvement
from esr_eval.solvers import VectorSource, model_under_test, steered_generate
from esr_eval.spec import Runtime

MOST_ERRORS = 0.1
"""Share of trials that may fail before the run as a whole counts as failed."""


class Protocol:
    """Which experiment of the paper a task is, and how it deviates from it."""

    def __init__(self, experiment: str, *deviations: str, version: int = 1) -> None:
        """Name the experiment.

        Args:
            experiment: Its number and name.
            deviations: From the paper's protocol, a sentence each.
            version: Of the task: logs of different versions do not compare.
        """
        self.version = version
        self.about: dict[str, Any] = {
            "paper": "arXiv:2602.06941",
            "experiment": experiment,
            "deviations": list(deviations),
        }


class Draw(NamedTuple):
    """How trials are drawn: the arguments of a task that say so, as it documents them."""

    latents: str | int | Sequence[int] | None
    n_latents: int | None
    trials_per_latent: int
    strength: str | float
    topics: str | Sequence[str] | None
    seed: int


@dataclass(frozen=True)
class Plan:
    """A run's trials.

    Attributes:
        planned: The trials.
        source: The log they came from, when they are another's.
        labels: What the log says of the file of labels (`dataset.labels_note`).
    """

    planned: list[Planned]
    source: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """Latents held at 0 while the model answers.

    Attributes:
        name: Of the set, for tables.
        latents: Which.
        layer: Where they are held.
    """

    name: str
    latents: tuple[int, ...]
    layer: int


@dataclass(frozen=True)
class Setup:
    """The model under test and its judge, checked and not yet loaded."""

    provider: ESRModelAPI
    judge: Model

    @classmethod
    def open(cls, wanted: Wanted = Wanted()) -> "Setup":  # noqa: B008 - frozen
        """Take the model and judge of this run.

        Args:
            wanted: What the run needs beside them.

        Raises:
            EsrError: Something stands in the way of the run; all that does is told at once.
        """
        model, provider = model_under_test()
        return cls(provider, open_judge(str(model), provider, wanted))

    def latents(
        self, latents: str | int | Sequence[int] | None, count: int | None, seed: int
    ) -> list[Latent]:
        """The run's latents, checked against the SAE.

        Raises:
            EsrError: See `dataset.pick_latents`; one is not in the SAE, or indices are given
                beside a number to draw.
        """
        check_choice(latents, count)
        chosen = pick_latents(self.provider.subject, latents, count, seed, self.provider.runtime)
        self.provider.check_latents([latent.index for latent in chosen])
        return chosen

    def strengths(self, strength: str | float, latents: Sequence[Latent]) -> dict[int, float]:
        """The strength of every latent, by index; see `boosts.resolve_strengths`."""
        return resolve_strengths(
            strength, self.provider.runtime, self.provider.subject, latents, str(self.judge)
        )

    def plan(
        self, draw: Draw, steering: bool, replay: str | None, prompt_set: PromptSet = "main"
    ) -> Plan:
        """Draw trials, or take another log's.

        Args:
            draw: How they are drawn.
            steering: Whether the boost is on.
            replay: The log whose trials are taken instead.
            prompt_set: Tasks to draw from.

        Raises:
            EsrError: An argument cannot be met, or stands beside `replay`, which decides it.
        """
        if replay is not None:
            check_replayed(latents=draw.latents, n_latents=draw.n_latents, topics=draw.topics)
            return self.replayed(replay, None if steering else "unsteered")
        chosen = self.latents(draw.latents, draw.n_latents, draw.seed)
        planned = draw_trials(
            chosen,
            self.strengths(draw.strength, chosen) if steering else {},
            choose_prompts(draw.topics, prompt_set),
            draw.trials_per_latent,
            draw.seed,
            "steered" if steering else "unsteered",
        )
        return Plan(planned, labels=self.labels_note(draw.latents))

    def replayed(self, log: str, condition: Condition | None) -> Plan:
        """Take another log's trials, with the boost as there (None), surely on, or off.

        Raises:
            EsrError: See `replay_log`; or a latent is not in the SAE.
        """
        found = replay_log(log, condition)
        self.provider.check_latents([one.trial.latent for one in found.planned])
        return Plan(found.planned, found.source)

    def labels_note(self, latents: str | int | Sequence[int] | None) -> dict[str, Any]:
        """What the log says of the file of labels; see `dataset.labels_note`."""
        return labels_note(self.provider.subject, latents, self.provider.runtime)


def check_replayed(**beside: object) -> None:
    """Refuse arguments beside `replay`, whose log decides them.

    Args:
        beside: What was given, by name; None where nothing was.

    Raises:
        EsrError: Something was.
    """
    if given := [name for name, value in beside.items() if value is not None]:
        raise EsrError(f"replay= takes its trials from the log: leave out {', '.join(given)}.")


def no_steering(steering: bool) -> str:
    """How a condition ends when its boost is off."""
    return "" if steering else ", no steering"


def feature_layer(runtime: Runtime) -> int:
    """The layer at which the SAE is read.

    Raises:
        EsrError: Nobody said which one the SAE was trained on.
    """
    if runtime.feature_layer is None:
        raise EsrError("Say which layer the SAE was trained on, to read there: -M feature_layer=.")
    return runtime.feature_layer


def experiment(
    setup: Setup,
    plan: Plan,
    protocol: Protocol,
    experiment_id: ExperimentId,
    *,
    name: str,
    condition: str,
    holistic: bool,
    until_token: int | None = None,
    grouped_by: str | None = None,
    ablation: Ablation | None = None,
    vectors: VectorSource | None = None,
    extra: dict[str, Any] | None = None,
) -> Task:
    """The task: trials answered under their boosts and split into graded attempts.

    Args:
        setup: Model and judge.
        plan: The trials.
        protocol: Which experiment of the paper it is, and how it deviates.
        experiment_id: Which experiment the log belongs to.
        name: Of the dataset.
        condition: What tells it from the experiment's other logs, in a few words.
        holistic: Also score how the response as a whole improves (the second view).
        until_token: Generated token from which on the boost is off (not the paper's setting).
        grouped_by: Field of the trial whose values the metrics are told apart by.
        ablation: Latents held at 0.
        vectors: Where the trials' plain vectors come from.
        extra: Further metadata of the log.
    """
    subject, runtime = setup.provider.subject, setup.provider.runtime
    ending = f", boost off after {until_token} tokens" if until_token is not None else ""
    metadata = {
        **protocol.about,
        "experiment_id": experiment_id,
        "condition": condition + ending,
        "subject": subject.name,
        "judge": str(setup.judge),
        "runtime": runtime.model_dump(mode="json", exclude_none=True),
        **({"replay": plan.source} if plan.source else {}),
        **plan.labels,
        **({"ablation": asdict(ablation)} if ablation else {}),
        **({"until_token": until_token} if until_token else {}),
        **(extra or {}),
    }
    return Task(
        dataset=trials_dataset(plan.planned, name),
        solver=steered_generate(
            ablated=list(ablation.latents) if ablation else [],
            ablation_layer=ablation.layer if ablation else None,
            vectors=vectors,
            until_token=until_token,
        ),
        scorer=[attempts(), improvement()] if holistic else attempts(),
        metrics=None if grouped_by is None else grouped_metrics(grouped_by),
        config=GenerateConfig(
            max_tokens=subject.max_tokens,
            temperature=subject.temperature,
            max_connections=setup.provider.max_connections(),
        ),
        # A trial that fails is counted and shown; a run in which many fail is no result.
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=_trials_view(),
        version=protocol.version,
        metadata=metadata,
    )


_SHOWN = {
    "first_score": "First score",
    "change": "Change",
    "multi_attempt": "Several attempts",
    "esr": "ESR",
    "restart_phrase": "Restart phrase",
    "degraded": "Degraded",
    "unscored": "Unscored",
}
"""Values of the scorer `attempts` that the viewer lists, with their headings."""


def _trials_view() -> ViewerConfig:
    """Worst first attempts first, with what followed them.

    Subjects write whatever their latents make them write, so nothing of it is rendered richly.
    """
    trial = ("sampleStatus", "sampleId", "input", "answer")
    columns = [TaskSamplesColumn(id=name) for name in trial]
    columns += [TaskSamplesColumn.score("attempts", name) for name in _SHOWN]
    return ViewerConfig(
        trust_content=False,
        sample_score_view=SampleScoreView(default="grid"),
        task_samples_view=TaskSamplesView(
            name="Trials",
            columns=[*columns, TaskSamplesColumn(id="error")],
            sort=[TaskSamplesSort.score("attempts", "first_score", dir="asc")],
            score_labels=_SHOWN,
            score_color_scales={
                "first_score": ScoreColorScale(palette="good-high", min=0, max=100),
                "change": ScoreColorScale(palette="diverging", min=-100, max=100),
            },
        ),
    )
