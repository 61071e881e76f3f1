"""Latents x tasks x seeds: the trials of a run, the same for the same arguments everywhere."""

import difflib
import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser
from pydantic import BaseModel, ConfigDict, Field

from esr_eval._util.output import note
from esr_eval._util.paths import given_path
from esr_eval.data.labels import SUFFIXES, Labels, read_labels
from esr_eval.data.neuronpedia import Fetched, fetch_labels, kept_labels
from esr_eval.data.trial import Condition, Strength, Trial
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime, fingerprint
from esr_eval.subjects import Subject, embedded_path

PromptSet = Literal["main", "detector_discovery", "held_out"]
SEED_RANGE = 1_000_000
"""Sampling seeds are drawn from 0 up to this (paper, sampling settings)."""
FRAMES = {"explain": "Explain how to {topic}.", "how": "How do you {topic}?"}


class Latent(BaseModel):
    """A latent and what it stands for."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(ge=0)
    label: str


class Prompt(BaseModel):
    """One task: its topic and the words that ask for it."""

    model_config = ConfigDict(frozen=True)

    topic: str
    text: str


@cache
def _topics() -> dict[str, Any]:
    text = resources.files("esr_eval.data").joinpath("topics.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def meta_prompts() -> dict[str, str]:
    """The sentences that may be appended to a task, by name (paper, meta-prompt experiment)."""
    return dict(_topics()["meta_prompts"])


@cache
def prompts(which: PromptSet = "main") -> tuple[Prompt, ...]:
    """The tasks of a set, in a fixed order (paper, appendix on prompts)."""
    topics = _topics()[which]
    if which == "held_out":
        return tuple(Prompt(topic=topic, text=question) for topic, question in topics.items())
    return tuple(
        Prompt(topic=topic, text=FRAMES[frame].format(topic=topic))
        for frame in FRAMES
        for topic in topics[frame]
    )


def choose_prompts(
    topics: str | Sequence[str] | None, which: PromptSet = "main"
) -> tuple[Prompt, ...]:
    """A set's tasks with these topics; all of them for None.

    Raises:
        EsrError: A topic is not in the set.
    """
    if topics is None:
        return prompts(which)
    wanted = [t.strip() for t in (topics.split(",") if isinstance(topics, str) else topics)]
    by_topic = {prompt.topic: prompt for prompt in prompts(which)}
    for topic in wanted:
        if topic not in by_topic:
            close = difflib.get_close_matches(topic, by_topic, n=1, cutoff=0.3)
            hint = f"; did you mean '{close[0]}'?" if close else "."
            raise EsrError(f"'{topic}' is none of the {len(by_topic)} topics{hint}")
    return tuple(by_topic[topic] for topic in wanted)


def load_latents(
    subject: Subject, source: str | None = None, runtime: Runtime | None = None
) -> list[Latent]:
    """The latents to boost, with their labels.

    Args:
        subject: Whose latents; it ships a list of its own or not.
        source: A CSV with the columns index_in_sae,label, or a Neuronpedia export (JSON or JSON
            lines with index and description, gzipped or not, or a folder of batches). None: the
            subject's own, or else those published for the run's SAE, which are fetched once.
        runtime: Names the SAE of the run. None: the subject's.

    Raises:
        EsrError: There is no list, or it cannot be read or fetched.
    """
    return _latents(_labels(subject, source, runtime))


def _latents(labels: Labels) -> list[Latent]:
    return [Latent(index=index, label=label) for index, label in labels.by_index.items()]


def latents_at_hand(subject: Subject, runtime: Runtime) -> list[Latent]:
    """The subject's own latents, or else the fetched ones in the cache; nothing is downloaded."""
    if subject.latents is not None:
        return load_latents(subject, None, runtime)
    kept = kept_labels(subject, runtime)
    return _latents(_fetched(kept, runtime)) if kept else []


def has_fetched_labels(subject: Subject, latents: str | int | Sequence[int] | None) -> bool:
    """Whether a run's labels are the published ones of a whole SAE, of 16,000 latents or more.

    Args:
        subject: As in `pick_latents`.
        latents: As in `pick_latents`.
    """
    return subject.latents is None and file_of(latents) is None


def _labels(subject: Subject, source: str | None, runtime: Runtime | None) -> Labels:
    source = subject.latents if source is None else source
    if source is None:
        ours = runtime or subject.runtime()
        return _fetched(fetch_labels(subject, ours), ours)
    try:
        path = embedded_path(source)
        there = bool(source.strip()) and path.exists()
    except OSError:  # a name too long for a file's, say
        path, there = Path(), False
    if not there:
        raise EsrError(
            f"There is no file or folder of labels '{source[:200]}'{_hint(path)}: name a CSV with "
            "the columns index_in_sae,label, or a Neuronpedia export, as -T latents=."
        )
    return read_labels(path, runtime or subject.runtime())


def _fetched(fetched: Fetched, runtime: Runtime) -> Labels:
    _say_once(fetched.line())
    found = read_labels(fetched.path, runtime)
    notes = (*fetched.origin.notes, *found.notes)
    return found._replace(notes=notes, origin=fetched.for_log())


@cache
def _say_once(line: str) -> None:
    note(line)


def _hint(path: Path) -> str:
    try:
        near = [file.name for file in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, near, n=1)
    return f" (did you mean '{path.with_name(close[0])}'?)" if close else ""


def choose_latents(
    available: Sequence[Latent],
    wanted: str | int | Sequence[int] | None,
    count: int | None,
    seed: int,
) -> list[Latent]:
    """Pick the run's latents.

    Args:
        available: All labelled latents of the subject.
        wanted: Indices to use (`7` or `7,12,40` or a list); None picks at random.
        count: How many to pick at random; None takes all.
        seed: Seed of the choice.

    Raises:
        EsrError: A wanted latent has no label, or more are asked for than there are.
    """
    if wanted is not None:
        indices = _indices(wanted)
        by_index = {latent.index: latent for latent in available}
        missing = [str(index) for index in indices if index not in by_index]
        if missing:
            raise EsrError(
                f"Latent {', '.join(missing)} is not among the {len(available)} labelled latents: "
                "add it to a CSV (index_in_sae,label) and pass that as -T latents=."
            )
        return [by_index[index] for index in indices]
    if count is None:
        return list(available)
    if not 1 <= count <= len(available):
        raise EsrError(f"n_latents={count}, but there are {len(available)} labelled latents.")
    return random.Random(f"latents-{seed}").sample(list(available), count)  # noqa: S311


def _indices(wanted: str | int | Sequence[int]) -> list[int]:
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    try:
        return [int(part) for part in ([parts] if isinstance(parts, int) else parts)]
    except ValueError:
        raise EsrError(f"'{wanted}' is not a list of latent indices such as 7,12,40.") from None


def pick_latents(
    subject: Subject,
    latents: str | int | Sequence[int] | None,
    count: int | None,
    seed: int,
    runtime: Runtime | None = None,
) -> list[Latent]:
    """A task's latents, from its arguments `latents` (indices, or a file of labels) and `count`.

    Raises:
        EsrError: See `load_latents` and `choose_latents`.
    """
    file = file_of(latents)
    known = load_latents(subject, file, runtime)
    return choose_latents(known, latents if file is None else None, count, seed)


def labels_note(
    subject: Subject, latents: str | int | Sequence[int] | None, runtime: Runtime | None = None
) -> dict[str, Any]:
    """What a log's metadata says of the labels: where they were fetched, what was left out of them.

    Args:
        subject: As in `pick_latents`.
        latents: As in `pick_latents`.
        runtime: As in `pick_latents`.
    """
    found = _labels(subject, file_of(latents), runtime)
    notes = {"labels": list(found.notes)} if found.notes else {}
    return notes | ({"labels_source": found.origin} if found.origin else {})


def file_of(latents: str | int | Sequence[int] | None) -> str | None:
    """The file or folder of labels that the `latents` argument names, if it names one."""
    return latents if isinstance(latents, str) and is_latents_file(latents) else None


def is_latents_file(latents: str | int | Sequence[int] | None) -> bool:
    """Whether the `latents` argument names a file or folder rather than indices.

    Whatever has no number among its parts is meant as a name: a mistyped one is then told as such.
    """
    if not isinstance(latents, str) or not latents.strip():
        return False
    if Path(latents).suffix.lower() in SUFFIXES:
        return True
    if re.fullmatch(r"[\d\s,;:.+-]+", latents):
        return False
    numbers = any(part.strip().isdecimal() for part in latents.split(","))
    return not numbers or Path(given_path(latents)).exists()


class Planned(NamedTuple):
    """A trial, the words that ask for it, and the beginning of its answer where one is given."""

    trial: Trial
    text: str
    prefill: str | None = None


def draw_trials(
    latents: Sequence[Latent],
    strengths: Mapping[int, Strength],
    asked: Sequence[Prompt],
    per_latent: int,
    seed: int,
    condition: Condition,
    to_choose: bool = False,
) -> list[Planned]:
    """Plan for every latent `per_latent` tasks, each with a seed of its own.

    Tasks and seeds depend on `seed` and the latent's index alone: neither the other latents nor
    the condition change them, so that conditions pair trial by trial. Tasks are drawn without
    repetition until all have been used.

    Args:
        latents: Which latents.
        strengths: Of the latents whose strength is known, by index; the others' trials wait for
            theirs. Not needed when unsteered.
        asked: The tasks to draw from.
        per_latent: Trials for each latent.
        seed: Seed of the draw.
        condition: Whether the boost is on.
        to_choose: Whether the latents are chosen in the run, and only counted here.
    """
    planned = []
    steered = condition == "steered"
    for latent in latents:
        found = strengths.get(latent.index) if steered else None
        for prompt, sampler in draw_tasks(asked, per_latent, f"trials-{seed}-{latent.index}"):
            trial = Trial(
                condition=condition,
                latent=latent.index,
                label=latent.label,
                strength=found.value if found else 0.0,
                strength_found=found.how if found else None,
                topic=prompt.topic,
                seed=sampler,
                pending=to_choose or (steered and found is None),
            )
            planned.append(Planned(trial, prompt.text))
    return planned


def draw_tasks(asked: Sequence[Prompt], count: int, seed: str) -> list[tuple[Prompt, int]]:
    """Tasks, none twice before all have been drawn, each with a seed of the sampler.

    Args:
        asked: The tasks to draw from.
        count: How many.
        seed: Of the draw.
    """
    draw = random.Random(seed)  # noqa: S311
    order: list[Prompt] = []
    while len(order) < count:
        order += draw.sample(list(asked), len(asked))
    return [(prompt, draw.randrange(SEED_RANGE)) for prompt in order[:count]]


def by_turns(planned: Sequence[Planned], per_latent: int) -> list[Planned]:
    """Every latent's first trial, then every second, and so on.

    What the first trials wait for, a search of their strength, then runs in the same batches.
    """
    return [one for turn in range(per_latent) for one in planned[turn::per_latent]]


def trials_dataset(planned: Sequence[Planned], name: str) -> MemoryDataset:
    """The planned trials as Inspect samples."""
    return MemoryDataset(
        [
            Sample(
                id=_sample_id(one.trial),
                input=_input(one),
                metadata=one.trial.model_dump(exclude_none=True, exclude=_unused(one.trial)),
            )
            for one in planned
        ],
        name=name,
    )


def _unused(trial: Trial) -> set[str]:
    return set() if trial.pending else {"pending"}


def _input(one: Planned) -> str | list[ChatMessage]:
    if one.prefill is None:
        return one.text
    return [ChatMessageUser(content=one.text), ChatMessageAssistant(content=one.prefill)]


def _sample_id(trial: Trial) -> str:
    """An id to read, and the same whatever the condition: it pairs trials across logs."""
    digest = fingerprint({"latent": trial.latent, "topic": trial.topic, "seed": trial.seed})[:6]
    level = "" if trial.level is None else f"-level{trial.level:+.2f}"
    latent = f"{trial.latent}-{_slug(trial.label)}" if trial.label else f"latent{trial.latent + 1}"
    return f"{latent}-{_slug(trial.topic)}-{digest}{level}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:32]
