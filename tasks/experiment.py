"""What every experiment shares: checks before anything loads, planned trials, the task itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inspect_ai import Task
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import Scorer

from esr_eval.calibration.boosts import resolve_strengths
from esr_eval.data.arguments import check_choice
from esr_eval.data.experiments import ExperimentId
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
from esr_eval.scorers.attempts import attempts
from esr_eval.scorers.grader import grader_model
from esr_eval.scorers.values import grouped_metrics
from esr_eval.solvers import VectorSource, model_under_test, steered_generate
from esr_eval.tasks.viewing import trials_view

MOST_ERRORS = 0.1
"""Share of trials that may fail before the run as a whole counts as failed."""


@dataclass(frozen=True)
class Bench:
    """The model under test and its judge, checked and not yet loaded."""

    provider: ESRModelAPI
    judge: Model

    @classmethod
    def open(cls) -> "Bench":
        """Take the model and judge of this run.

        Raises:
            EsrError: The model cannot be steered, does not fit, or has no judge.
        """
        model, provider = model_under_test()
        judge = grader_model(str(model))  # a missing key is told before a hub is asked
        provider.preflight()
        return cls(provider, judge)

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
        """The boost of every latent, by index; see `boosts.resolve_strengths`."""
        return resolve_strengths(
            strength, self.provider.runtime, self.provider.subject, latents, str(self.judge)
        )


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


def plan_trials(
    bench: Bench,
    *,
    latents: str | int | Sequence[int] | None,
    n_latents: int | None,
    trials_per_latent: int,
    strength: str | float,
    topics: str | Sequence[str] | None,
    steering: bool,
    seed: int,
    replay: str | None,
    prompt_set: PromptSet = "main",
) -> Plan:
    """Draw trials from the arguments that all experiments share, or take another log's.

    Raises:
        EsrError: An argument cannot be met, or stands beside `replay`, which decides it.
    """
    if replay is not None:
        check_replayed(latents=latents, n_latents=n_latents, topics=topics)
        found = replay_log(replay, None if steering else "unsteered")
        bench.provider.check_latents([one.trial.latent for one in found.planned])
        return Plan(found.planned, found.source)
    chosen = bench.latents(latents, n_latents, seed)
    planned = draw_trials(
        chosen,
        bench.strengths(strength, chosen) if steering else {},
        choose_prompts(topics, prompt_set),
        trials_per_latent,
        seed,
        "steered" if steering else "unsteered",
    )
    note = labels_note(bench.provider.subject, latents, bench.provider.runtime)
    return Plan(planned, labels=note)


def check_replayed(**beside: object) -> None:
    """Refuse arguments beside `replay`, whose log decides them.

    Args:
        beside: What was given, by name; None where nothing was.

    Raises:
        EsrError: Something was.
    """
    if given := [name for name, value in beside.items() if value is not None]:
        raise EsrError(f"replay= takes its trials from the log: leave out {', '.join(given)}.")


def experiment(
    bench: Bench,
    plan: Plan,
    *,
    version: int,
    paper: dict[str, Any],
    name: str,
    experiment_id: ExperimentId,
    condition: str,
    grouped_by: str | None = None,
    ablation: Ablation | None = None,
    vectors: VectorSource | None = None,
    until_token: int | None = None,
    holistic: bool = False,
    extra: dict[str, Any] | None = None,
) -> Task:
    """The task: trials answered under their boosts and split into graded attempts.

    Args:
        bench: Model and judge.
        plan: The trials.
        version: Of the task.
        paper: Which experiment of the paper it is, and how it deviates.
        name: Of the dataset.
        experiment_id: Which experiment the log belongs to.
        condition: What tells it from the experiment's other logs, in a few words.
        grouped_by: Field of the trial whose values the metrics are told apart by.
        ablation: Latents held at 0.
        vectors: Where the trials' plain vectors come from.
        until_token: Generated token from which on the boost is off (not the paper's setting).
        holistic: Also score how the response as a whole improves (the second view).
        extra: Further metadata of the log.
    """
    subject, runtime = bench.provider.subject, bench.provider.runtime
    metadata = {
        **paper,
        "experiment_id": experiment_id,
        "condition": condition + _ending(until_token),
        "subject": subject.name,
        "judge": str(bench.judge),
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
        scorer=[attempts(), _second_view()] if holistic else attempts(),
        metrics=None if grouped_by is None else grouped_metrics(grouped_by),
        config=GenerateConfig(
            max_tokens=subject.max_tokens,
            temperature=subject.temperature,
            max_connections=bench.provider.max_connections(),
        ),
        # A trial that fails is counted and shown; a run in which many fail is no result.
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=trials_view(),
        version=version,
        metadata=metadata,
    )


def _ending(until_token: int | None) -> str:
    if until_token is None:
        return ""
    return f", boost off after {until_token} tokens"


def _second_view() -> Scorer:
    from esr_eval.scorers.improvement import improvement

    return improvement()
