"""Injected thoughts (after arXiv 2601.01828): does the model notice an injection, and name it?"""

import random
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.viewer import ViewerConfig
from pydantic import BeforeValidator

from esr_eval.calibration.strengths import parse_strength
from esr_eval.checks import Wanted
from esr_eval.data.arguments import (
    Count,
    CountOrNone,
    LatentsArgument,
    LogFile,
    Method,
    Names,
    Number,
    Prior,
    Seed,
    checked,
    strength_rule,
    with_method,
)
from esr_eval.data.experiments import display_name, tags
from esr_eval.data.thoughts import (
    AS_REPLAYED,
    FORMS,
    WORDINGS,
    Form,
    Kind,
    Probe,
    SpanName,
    Wording,
    messages,
    unrelated_questions,
)
from esr_eval.data.trial import Strength
from esr_eval.dataset import SEED_RANGE, Latent, file_of
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log
from esr_eval.scorers.introspection import introspection
from esr_eval.selection.injection import inject
from esr_eval.solvers import VectorSource
from esr_eval.spec import fingerprint
from esr_eval.subjects import check_layer
from esr_eval.tasks.experiment import (
    MOST_ERRORS,
    Draw,
    Setup,
    check_replayed,
    latents_to_choose,
)
from esr_eval.vectors.file import VectorFile, default_vectors, read_vectors, vector_strengths

ABOUT = {
    "paper": "arXiv:2601.01828",
    "experiment": "14 (injected thoughts)",
    "deviations": [
        "All texts are this project's own.",
        "The injection covers the introduction as well as the question.",
        "Concepts are SAE latents, or contrastive vectors; strengths are shares of the residual's "
        "norm.",
        "The judge's prompt is in this project's own words.",
    ],
}
DOSES = ["0.3rms", "0.6rms"]
"""Where answers of small models begin to drift, and where they have (`subjects.RELATIVE_PRIOR`)."""
DEFAULT_CONCEPTS = 12
"""Concepts of a run that names neither them nor their number."""
THOUGHT_TOKENS = 100
"""Longest answer about a thought, where the subject's own answers are not shorter."""


def _doses(value: Any) -> Any:
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    for part in parts:
        strength_rule(part)
    if len({str(part).strip() for part in parts}) < len(parts):
        raise ValueError("it names a strength more than once")
    return [str(part).strip() for part in parts]


def _layers(value: Any) -> Any:
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    texts = [str(part).strip() for part in parts]
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong or not texts or len(set(texts)) < len(texts):
        raise ValueError("it takes decoder layers such as 10,14,20, each once")
    return [int(text) for text in texts]


Doses = Annotated[str | float | list[str] | None, BeforeValidator(_doses)]
Layers = Annotated[str | int | list[int] | None, BeforeValidator(_layers)]


class _Dose(NamedTuple):
    """One way to inject a concept; the strength is known or found in the run."""

    dose: str
    layer: int
    strength: Strength | None


class _Concepts(NamedTuple):
    """What is injected: the concepts, how strongly each, and where they come from."""

    latents: list[Latent]
    doses: dict[int, list[_Dose]]
    wanted: int | None = None
    vectors: VectorFile | None = None
    source: dict[str, str] | None = None


@task
@checked
def injected_thought(
    latents: LatentsArgument = None,
    n_latents: Number | None = None,
    trials_per_latent: Count = 3,
    strengths: Doses = None,
    layers: Layers = None,
    span: SpanName = "both",
    wordings: Names | None = None,
    answers: Literal["free", "prefilled", "both"] = "both",
    unrelated: CountOrNone = 2,
    vectors: str | None = None,
    seed: Seed = 0,
    replay: LogFile | None = None,
    prior: Prior = None,
    method: Method = None,
) -> Task:
    """Injected thoughts: detection, and what of it is more than a shift of all yes/no answers.

    A concept is injected while the model is asked whether it detects an injected thought, and
    which. Each trial stands beside one of the same seed without injection, and beside unrelated
    yes/no questions with and without it.

    Args:
        latents: As in `esr`.
        n_latents: How many of them to draw at random. Default: 12; of a replayed log, all.
        trials_per_latent: Trials for each concept and dose, over wordings and forms in turn.
        strengths: One or several, comma-separated: shares of the residual's norm (`0.3rms,0.6rms`),
            or as `strength` in `esr`. Default: 0.3rms and 0.6rms; none beside `replay`.
        layers: Decoder layers to inject at, comma-separated. Default: the steering layer.
        span: Positions that are touched: the `question` (with its introduction), the `answer`, its
            first `token`, or `both` question and answer.
        wordings: Of `half`, `rare`, `hints` and `unprompted`. Default: all.
        answers: `free`, `prefilled` ("The answer is"), or `both` in turn.
        unrelated: Unrelated questions whose answer is no, for each trial; one whose answer is yes
            stands beside them. 0 leaves them out, and with them the correction.
        vectors: Inject concept vectors instead: a file of `esr-eval vectors extract`, or `shipped`.
        seed: Seed of all draws.
        replay: A main run whose latents are injected at its strengths, so that the report can tell
            whether those that report an injection also start over under it.
        prior: Of searches for calibrated strengths, as in `calibrate`.
        method: Of these searches, `paper` or `curve`, as in `calibrate`.
    """
    prior = with_method(prior, method)
    setup = Setup.open(
        Wanted(edits=vectors is None, labels=vectors is None and replay is None, latents=latents)
    )
    chosen_wordings = _wordings(wordings)
    chosen_forms = FORMS if answers == "both" else (answers,)
    concepts = _concepts(setup, latents, n_latents, strengths, layers, vectors, seed, replay, prior)
    samples = _samples(
        concepts, trials_per_latent, chosen_wordings, chosen_forms, span, unrelated, seed
    )
    runtime, subject = setup.provider.runtime, setup.provider.subject
    file = concepts.vectors
    return Task(
        dataset=MemoryDataset(samples, name="esr-injected-thoughts"),
        solver=inject(
            seed,
            runtime.steering_layer,
            labels=file_of(latents),
            wanted=concepts.wanted,
            vectors=None if file is None else VectorSource(file.path, file.sha256, file.info.layer),
            prior=prior,
        ),
        scorer=introspection(),
        config=GenerateConfig(
            max_tokens=min(THOUGHT_TOKENS, subject.max_tokens),
            temperature=subject.temperature,
            max_connections=setup.provider.max_connections(),
        ),
        score_on_error=True,
        fail_on_error=MOST_ERRORS,
        viewer=ViewerConfig(trust_content=False),
        display_name=display_name("injected_thought", subject.name, "" if span == "both" else span),
        tags=tags("injected_thought", subject.name, str(setup.judge)),
        metadata={
            **ABOUT,
            "experiment_id": "injected_thought",
            "condition": "injected thoughts" + ("" if span == "both" else f", {span}"),
            "subject": subject.name,
            "judge": str(setup.judge),
            "runtime": runtime.model_dump(mode="json", exclude_none=True),
            **({"replay": concepts.source} if concepts.source else {}),
            **(setup.labels_note(latents) if file is None and replay is None else {}),
            **({"vectors": {"path": file.path, "sha256": file.sha256}} if file else {}),
        },
    )


def _wordings(names: str | Sequence[str] | None) -> tuple[Wording, ...]:
    if names is None:
        return WORDINGS
    wanted = [names] if isinstance(names, str) else names
    if wrong := [name for name in wanted if name not in WORDINGS]:
        raise EsrError(f"There is no wording '{wrong[0]}'; there are {', '.join(WORDINGS)}.")
    return tuple(name for name in WORDINGS if name in wanted)


def _concepts(
    setup: Setup,
    latents: str | int | list[int] | None,
    count: int | None,
    strengths: str | float | list[str] | None,
    layers: str | int | list[int] | None,
    vectors: str | None,
    seed: int,
    replay: str | None,
    prior: dict[str, Any] | None,
) -> _Concepts:
    doses = strengths if isinstance(strengths, list) else []
    if vectors is not None:
        if latents is not None or replay is not None or layers is not None:
            raise EsrError(
                "vectors= injects concepts of its own, at the layer they were taken from: leave "
                "out latents, layers and replay."
            )
        return _of_vectors(setup, vectors, count, doses or DOSES, seed)
    at = _layers_of(setup, layers)
    if replay is not None:
        check_replayed(latents=latents, layers=layers)
        return _replayed(setup, replay, count, doses, at[0], seed)
    _check_doses(doses, at, setup.provider.runtime.steering_layer)
    ways = [(dose, layer) for layer in at for dose in doses or DOSES]
    indices = isinstance(latents, int | list)
    wanted = latents_to_choose(
        setup.provider, latents, count or (None if indices else DEFAULT_CONCEPTS)
    )
    if wanted is not None:
        chosen = [Latent(index=number, label="") for number in range(wanted)]
    else:
        chosen = setup.latents(latents, count or _most(setup, latents), seed)
    known: dict[str, dict[int, Strength]] = {}
    if wanted is None:
        for dose in doses or DOSES:
            draw = Draw(None, None, 1, dose, None, seed, prior)
            known[dose] = setup.strengths(draw, chosen)
    found = {
        one.index: [_Dose(dose, layer, known.get(dose, {}).get(one.index)) for dose, layer in ways]
        for one in chosen
    }
    return _Concepts(chosen, found, wanted)


def _most(setup: Setup, latents: str | int | list[int] | None) -> int | None:
    """The default number of concepts, or all where there are fewer; None where they are named."""
    if isinstance(latents, int | list):
        return None
    return min(DEFAULT_CONCEPTS, len(setup.latents(latents, None, 0)))


def _layers_of(setup: Setup, layers: str | int | list[int] | None) -> list[int]:
    subject, steering = setup.provider.subject, setup.provider.runtime.steering_layer
    if isinstance(layers, list):
        for layer in layers:
            if subject.n_layers is not None:
                check_layer(layer, subject.n_layers, subject.name, f"-T layers={layer}")
        return layers
    if steering is None:
        raise EsrError("The model has no steering layer: name one with -M steering_layer=.")
    return [steering]


def _check_doses(doses: Sequence[str], layers: Sequence[int], steering: int | None) -> None:
    """Refuse strengths that were calibrated at one layer for another."""
    for dose in doses:
        if parse_strength(dose).kind in ("calibrated", "prior") and set(layers) != {steering}:
            raise EsrError(
                f"-T strengths={dose} is known of the steering layer ({steering}) alone: pass "
                "shares of the residual's norm (0.6rms) for other layers."
            )


def _of_vectors(
    setup: Setup, path: str, count: int | None, doses: Sequence[str], seed: int
) -> _Concepts:
    subject = setup.provider.subject
    file = read_vectors(default_vectors(subject) if path == "shipped" else path)
    file.check_fits(setup.provider.runtime, subject)
    available = file.latents()
    number = min(DEFAULT_CONCEPTS, len(available)) if count is None else count
    if number > len(available):
        raise EsrError(f"n_latents={number}, but {file.path} holds {len(available)} vectors.")
    chosen = random.Random(f"vectors-{seed}").sample(available, number)  # noqa: S311
    ways: dict[int, list[_Dose]] = {one.index: [] for one in chosen}
    for dose in doses:
        for index, strength in vector_strengths(dose, file, chosen, str(setup.judge)).items():
            ways[index].append(_Dose(dose, file.info.layer, strength))
    return _Concepts(chosen, ways, vectors=file)


def _replayed(
    setup: Setup, log: str, count: int | None, doses: Sequence[str], layer: int, seed: int
) -> _Concepts:
    found = replay_log(log, "steered")
    if any(one.trial.vector is not None for one in found.planned):
        raise EsrError(f"The log {log} added plain vectors: replay one that boosted latents.")
    trials = {one.trial.latent: one.trial for one in found.planned}
    setup.provider.check_latents(sorted(trials))
    if count is not None and count > len(trials):
        raise EsrError(f"n_latents={count}, but {log} boosted {len(trials)} latents.")
    drawn = sorted(trials)
    if count is not None:
        drawn = random.Random(f"latents-{seed}").sample(drawn, count)  # noqa: S311
    ways = {
        index: [
            _Dose(
                AS_REPLAYED,
                layer,
                Strength(trials[index].strength, trials[index].strength_found or "replayed"),
            ),
            *(_Dose(dose, layer, None) for dose in doses),
        ]
        for index in drawn
    }
    chosen = [Latent(index=index, label=trials[index].label) for index in drawn]
    return _Concepts(chosen, ways, source=found.source)


def _samples(
    concepts: _Concepts,
    per_concept: int,
    wordings: Sequence[Wording],
    forms: Sequence[Form],
    span: SpanName,
    unrelated_no: int,
    seed: int,
) -> list[Sample]:
    """Questions about thoughts first, so that answers of a length share batches."""
    about: list[Sample] = []
    others: list[Sample] = []
    for place, latent in enumerate(concepts.latents):
        draw = random.Random(f"thoughts-{seed}-{latent.index}")  # noqa: S311
        for turn in range(per_concept):
            # Each wording meets each form, and concepts begin at different ones.
            at = turn + place
            wording = wordings[at % len(wordings)]
            form = forms[(at + at // len(wordings)) % len(forms)]
            sampler = draw.randrange(SEED_RANGE)
            asked: list[tuple[Kind, str | None]] = [("thought", None)]
            if unrelated_no:
                asked += [
                    ("no", text) for text in _drawn(draw, unrelated_questions("no"), unrelated_no)
                ]
                asked += [("yes", text) for text in _drawn(draw, unrelated_questions("yes"), 1)]
            for number, (kind, question) in enumerate(asked):
                for way in (None, *concepts.doses[latent.index]):
                    probe = _probe(concepts, latent, way).model_copy(
                        update={
                            "kind": kind,
                            "topic": question or "an injected thought",
                            "wording": wording,
                            "form": form,
                            "turn": turn,
                            "seed": sampler,
                            "span": None if way is None else span,
                        }
                    )
                    sample = Sample(
                        id=_id(probe, bool(concepts.wanted), number),
                        input=messages(wording, form, turn + 1, question),
                        metadata=probe.model_dump(
                            exclude_none=True, exclude=set() if probe.pending else {"pending"}
                        ),
                    )
                    (about if kind == "thought" else others).append(sample)
    return about + others


def _drawn(draw: random.Random, texts: Sequence[str], count: int) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += draw.sample(list(texts), min(len(texts), count - len(drawn)))
    return drawn


def _probe(concepts: _Concepts, latent: Latent, way: _Dose | None) -> Probe:
    unknown = way is not None and way.strength is None
    strength = way.strength if way is not None else None
    return Probe(
        condition="unsteered" if way is None else "steered",
        latent=latent.index,
        label=latent.label,
        strength=strength.value if strength else 0.0,
        strength_found=strength.how if strength else None,
        topic="",
        seed=0,
        vector=latent.label if concepts.vectors is not None and way is not None else None,
        pending=concepts.wanted is not None or unknown,
        kind="thought",
        wording="half",
        form="free",
        turn=0,
        dose=way.dose if way else None,
        layer=way.layer if way else None,
    )


def _id(probe: Probe, counted: bool, number: int) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", probe.label.lower()).strip("_")[:32]
    concept = f"latent{probe.latent + 1}" if counted else f"{probe.latent}-{name}"
    way = f"{probe.dose}@{probe.layer}".replace(" ", "_") if probe.dose else "control"
    kind = probe.kind if probe.kind == "thought" else f"{probe.kind}{number}"
    digest = fingerprint({"seed": probe.seed, "topic": probe.topic})[:4]
    return f"{concept}-{probe.turn + 1}-{kind}-{digest}-{way}"
