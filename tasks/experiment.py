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

from esr_eval.calibration.strengths import known_strengths, parse_strength
from esr_eval.checks import Wanted, open_judge
from esr_eval.data.arguments import check_choice
from esr_eval.data.experiments import ExperimentId, display_name, tags
from esr_eval.data.trial import OF_NORM, Condition, Strength
from esr_eval.dataset import (
    Latent,
    Planned,
    PromptSet,
    by_turns,
    choose_prompts,
    draw_trials,
    file_of,
    has_fetched_labels,
    labels_note,
    load_latents,
    pick_latents,
    trials_dataset,
)
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers.attempts import attempts, grouped_metrics
from esr_eval.scorers.continuation import continuation
from esr_eval.scorers.improvement import improvement
from esr_eval.scorers.reliability import reliability
from esr_eval.selection.prepare import prepare
from esr_eval.solvers import VectorSource, model_under_test, steered_generate
from esr_eval.spec import Runtime

DEFAULT_LATENTS = 20
"""Latents of a run that is given the labels of a whole SAE and no number."""
MOST_AT_ONCE = 2_000
"""Labels beyond which a list is a whole SAE's, not somebody's choice."""
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
    prior: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """A run's trials.

    Attributes:
        planned: The trials.
        source: The log they came from, when they are another's.
        labels: What the log says of the file of labels (`dataset.labels_note`).
        preparation: Arguments of `prepare`, where latents or strengths are found in the run.
        strength: What is to be said of strengths that are not calibrated, in a few words.
    """

    planned: list[Planned]
    source: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] | None = None
    strength: str | None = None


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

    def strengths(self, draw: Draw, latents: Sequence[Latent]) -> dict[int, Strength]:
        """The strengths that are known before the run, by index; see `known_strengths`."""
        provider = self.provider
        return known_strengths(
            parse_strength(draw.strength),
            provider.runtime,
            provider.subject,
            latents,
            str(self.judge),
            draw.prior,
        )

    def restrengthened(self, planned: Sequence[Planned], draw: Draw) -> Plan:
        """The same trials at this run's strengths.

        Args:
            planned: Trials, steered.
            draw: Names the strengths.
        """
        labels = {one.trial.latent: one.trial.label for one in planned}
        latents = [Latent(index=index, label=label) for index, label in labels.items()]
        known = self.strengths(draw, latents)
        unknown = Strength(0.0, "")
        changed = [
            one._replace(
                trial=one.trial.model_copy(
                    update={
                        "strength": known.get(one.trial.latent, unknown).value,
                        "strength_found": known.get(one.trial.latent, unknown).how or None,
                        "pending": one.trial.latent not in known,
                    }
                )
            )
            for one in planned
        ]
        return Plan(
            changed,
            preparation=preparation(changed, draw, latents=latents),
            strength=_said(draw, True),
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
        condition: Condition = "steered" if steering else "unsteered"
        asked, per_latent = choose_prompts(draw.topics, prompt_set), draw.trials_per_latent
        labels = self.labels_note(draw.latents)
        wanted = latents_to_choose(self.provider, draw.latents, draw.n_latents)
        if wanted is not None:
            counted = [Latent(index=number, label="") for number in range(wanted)]
            planned = draw_trials(counted, {}, asked, per_latent, draw.seed, condition, True)
            needs = preparation(planned, draw, wanted=wanted)
        else:
            chosen = self.latents(draw.latents, draw.n_latents, draw.seed)
            known = self.strengths(draw, chosen) if steering else {}
            planned = draw_trials(chosen, known, asked, per_latent, draw.seed, condition)
            needs = preparation(planned, draw, latents=chosen)
        if needs is not None:
            planned = by_turns(planned, per_latent)
        return Plan(planned, labels=labels, preparation=needs, strength=_said(draw, steering))

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


def latents_to_choose(
    provider: ESRModelAPI, latents: str | int | Sequence[int] | None, count: int | None
) -> int | None:
    """How many latents a run chooses by itself; None where it is told which.

    Labels of a whole SAE are many, and most of its latents not fit to be boosted.

    Args:
        provider: The model under test.
        latents: The task's argument: indices, or a file of labels.
        count: How many are asked for.

    Raises:
        EsrError: There are no labels, or fewer than latents are asked for.
    """
    check_choice(latents, count)
    file = file_of(latents)
    if latents is not None and file is None:
        return None
    labelled = load_latents(provider.subject, file, provider.runtime)
    whole = has_fetched_labels(provider.subject, latents) or len(labelled) > MOST_AT_ONCE
    if not whole:
        return None
    wanted = count or DEFAULT_LATENTS
    if wanted > len(labelled):
        raise EsrError(f"n_latents={wanted}, but there are {len(labelled)} labelled latents.")
    return wanted


def preparation(
    planned: Sequence[Planned],
    draw: Draw,
    *,
    wanted: int | None = None,
    latents: Sequence[Latent] = (),
) -> dict[str, Any] | None:
    """Arguments of `prepare` for these trials; None where none waits for anything.

    Args:
        planned: The trials.
        draw: How they were drawn.
        wanted: How many latents the run chooses.
        latents: The latents where they are known.
    """
    if not any(one.trial.pending for one in planned):
        return None
    topics = draw.topics.split(",") if isinstance(draw.topics, str) else draw.topics
    file = file_of(draw.latents)
    given = {
        "strength": draw.strength,
        "seed": draw.seed,
        "trials": len(planned),
        "labels": file if wanted is not None else None,
        "wanted": wanted,
        "topics": None if topics is None else list(topics),
        "latents": [(one.index, one.label) for one in latents] or None,
        "prior": draw.prior,
    }
    return {name: value for name, value in given.items() if value is not None}


def _said(draw: Draw, steering: bool) -> str | None:
    rule = parse_strength(draw.strength)
    if not steering or rule.kind not in ("prior", "rms"):
        return None
    if rule.kind == "prior":
        return "uncalibrated strengths"
    return f"uncalibrated: {rule.value:g} {OF_NORM}"


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
    rejudge: float = 0.0,
    until_token: int | None = None,
    grouped_by: str | None = None,
    ablation: Ablation | None = None,
    vectors: VectorSource | None = None,
    continued: bool = False,
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
        rejudge: Share of the responses that are judged again, blind.
        until_token: Generated token from which on the boost is off (not the paper's setting).
        grouped_by: Field of the trial whose values the metrics are told apart by.
        ablation: Latents held at 0.
        vectors: Where the trials' plain vectors come from.
        continued: Also score what the model adds to the beginning that it is given.
        extra: Further metadata of the log.
    """
    subject, runtime = setup.provider.subject, setup.provider.runtime
    ending = f", boost off after {until_token} tokens" if until_token is not None else ""
    if plan.strength is not None:
        ending = f", {plan.strength}{ending}"
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
    steered = steered_generate(
        ablated=list(ablation.latents) if ablation else [],
        ablation_layer=ablation.layer if ablation else None,
        vectors=vectors,
        until_token=until_token,
    )
    conditions = sorted({one.trial.condition for one in plan.planned})
    waiting = [prepare(**plan.preparation)] if plan.preparation else []
    scorers = [attempts()]
    if continued:
        scorers.append(continuation())
    if holistic:
        scorers.append(improvement())
    if rejudge:
        scorers.append(reliability(rejudge))
    return Task(
        dataset=trials_dataset(plan.planned, name),
        solver=[*waiting, steered] if waiting else steered,
        scorer=scorers,
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
        display_name=display_name(
            experiment_id, subject.name, ", ".join([*conditions, condition + ending])
        ),
        # Inspect's list sorts tags and shows ten letters: a bracket sorts before every name.
        tags=tags(
            experiment_id, subject.name, str(setup.judge), *(f"({one})" for one in conditions)
        ),
        metadata=metadata,
    )


_SHOWN = {
    "first_score": "First score",
    "change": "Change",
    "multi_attempt": "Several attempts",
    "confirmed": "Confirmed",
    "esr": "ESR",
    "recovered": "Recovered",
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
