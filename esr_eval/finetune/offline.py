"""The offline writer: examples from the subject's own answers, steered and unsteered.

The off-topic part is what the subject itself says under the boost of a random latent, the answer
is its own unsteered one, and the words between are templates. The evaluated latents and those that
point the same way are never drawn, so that an evaluation asks about directions never trained on.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from esr_eval.dataset import SEED_RANGE, Latent, load_latents
from esr_eval.errors import EsrError
from esr_eval.finetune.examples import (
    SUBJECT_FRAME,
    Checker,
    Example,
    Journal,
    Rejects,
    Segment,
    TrainingBoost,
    off_topic_subjects,
    training_tasks,
)
from esr_eval.spec import Boost, Runtime, Steering, fingerprint
from esr_eval.subjects import Subject

if TYPE_CHECKING:
    from esr_eval.backends.base import Backend
    from esr_eval.steering.requests import Row

WRITER = "offline"
OPENINGS = (
    "Wait, that's not right.",
    "Wait, that is not what you asked about.",
    "Hold on, that's off-topic.",
    "Hold on, I got off track.",
    "Wait, I got sidetracked.",
    "Sorry, I got off topic.",
    "Oops, I went off on a tangent.",
    "Hmm, that's not relevant.",
    "Actually, I made a mistake.",
    "No, that's wrong.",
    "Wait, I am not answering the question.",
    "I'm sorry, that was off-topic.",
)
RESUMPTIONS = (
    "Let me start over.",
    "Let me try again.",
    "Let's start over.",
    "Let me answer the question.",
    "Let me go back to the question.",
    "I'd like to revise my answer.",
    "Back to the question:",
    "",
)

_SENTENCE_END = re.compile(r"[.!?][)\]\"'”’*]*(?=\s)")
_LAST_WORD = re.compile(r"\s+\S*$")


class OfflineSettings(BaseModel):
    """How many answers the subject gives, how long, and how hard it is pushed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steered: int = Field(default=420, ge=1, description="Steered answers to take drifts from.")
    answers_per_task: int = Field(default=1, ge=1, description="Unsteered answers to each task.")
    drift_tokens: int = Field(default=36, ge=8, description="Longest steered answer.")
    answer_tokens: int = Field(default=72, ge=16, description="Longest unsteered answer.")
    strengths: tuple[float, float] = Field(
        default=(45.0, 105.0), description="Range that a boost is drawn from, evenly."
    )
    latents: str = Field(
        default="embedded:smollm2-135m/confirmations.csv",
        description="Labelled latents to boost; the spared ones among them are left out.",
    )
    spared: str = Field(
        default="embedded:smollm2-135m/labels.csv",
        description="Labelled latents never to boost, beside the subject's evaluated ones.",
    )
    most_alike: float = Field(
        default=0.25, gt=0, le=1, description="Largest cosine with an evaluated latent's direction."
    )
    batch: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Wanted:
    """One answer that the subject shall give."""

    kind: Literal["drift", "answer", "subject"]
    prompt: str
    topic: str
    seed: int
    boost: TrainingBoost | None
    max_tokens: int
    label: str | None = None

    def plain(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self) | {"boost": self.boost.model_dump() if self.boost else None}

    def row(self, backend: "Backend", subject: Subject, runtime: Runtime) -> "Row":
        """The request for it."""
        from esr_eval.steering.requests import Row
        from esr_eval.steering.sampling import Sampling

        assert runtime.steering_layer is not None
        edits = (
            (Boost(**self.boost.model_dump(), layer=runtime.steering_layer),) if self.boost else ()
        )
        return Row(
            prompt=tuple(
                backend.encode_chat([{"role": "user", "content": self.prompt}], prefill=None)
            ),
            sampling=Sampling(
                seed=self.seed,
                temperature=subject.temperature,
                top_p=None,
                top_k=None,
                repetition_penalty=runtime.repetition_penalty,
                max_tokens=self.max_tokens,
            ),
            steering=Steering(runtime=runtime, edits=edits),
        )


def allowed_latents(subject: Subject, runtime: Runtime, settings: OfflineSettings) -> list[Latent]:
    """Latents that may be boosted in training: none evaluated, none pointing the same way.

    Args:
        subject: Its labelled latents are the evaluated ones.
        runtime: Names the SAE.
        settings: Which latents to choose from, which to spare, and how unlike those must be.

    Raises:
        EsrError: The subject has no SAE in a local folder, or no latent is left.
    """
    import torch
    from safetensors import safe_open

    from esr_eval.sae.config import WEIGHTS_FILE
    from esr_eval.sae.files import local_folder

    folder = local_folder(runtime.sae) if runtime.sae is not None else None
    if folder is None:
        raise EsrError(f"{subject.name} has no SAE on this machine to steer its answers with.")
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        directions = weights.get_tensor("W_dec").float()
    directions = directions / directions.norm(dim=-1, keepdim=True)
    spared = [*load_latents(subject), *load_latents(subject, settings.spared)]
    evaluated = torch.tensor([latent.index for latent in spared])
    alike = (directions @ directions[evaluated].T).amax(dim=-1)
    alike[evaluated] = 1.0
    known = load_latents(subject, settings.latents)
    found = [one for one in known if alike[one.index] < settings.most_alike]
    if not found:
        raise EsrError(f"{settings.latents} lists no latent that is unlike the evaluated ones.")
    return found


def plan(settings: OfflineSettings, latents: Sequence[Latent]) -> list[Wanted]:
    """Every answer to be given, the same for the same settings."""
    rng = random.Random(f"offline-{settings.seed}")  # noqa: S311
    tasks = training_tasks()
    order = rng.sample(tasks, len(tasks))
    shuffled = rng.sample(list(latents), len(latents))
    wanted = [
        Wanted(
            "drift",
            order[i % len(order)].text,
            order[i % len(order)].topic,
            rng.randrange(SEED_RANGE),
            TrainingBoost(latent=latent.index, strength=round(rng.uniform(*settings.strengths), 1)),
            settings.drift_tokens,
            latent.label,
        )
        for i in range(settings.steered)
        for latent in (shuffled[i % len(shuffled)],)
    ]
    wanted += [
        Wanted(
            "answer", task.text, task.topic, rng.randrange(SEED_RANGE), None, settings.answer_tokens
        )
        for task in tasks
        for _ in range(settings.answers_per_task)
    ]
    wanted += [
        Wanted(
            "subject",
            SUBJECT_FRAME.format(subject=subject),
            subject,
            rng.randrange(SEED_RANGE),
            None,
            settings.answer_tokens,
        )
        for subject in off_topic_subjects()
    ]
    return wanted


def write_answers(
    subject: Subject,
    settings: OfflineSettings,
    folder: Path,
    *,
    device: str | None,
    progress: Callable[[int, int], None],
) -> list[tuple[Wanted, str, bool]]:
    """Let the subject answer; goes on where an earlier run with the same settings stopped.

    Args:
        subject: Who answers.
        settings: How many answers, how long, under which boosts.
        folder: Keeps a journal of answers.
        device: transformers device map; None picks one.
        progress: Called with how many are done, of how many.

    Returns:
        Every wanted answer with its text and whether it ended by itself.

    Raises:
        EsrError: The folder is of other settings, or the subject cannot be steered.
    """
    from esr_eval.backends.local import LocalBackend

    journal, runtime = Journal(folder / "answers.jsonl"), subject.runtime()
    wanted = plan(settings, allowed_latents(subject, runtime, settings))
    # What was asked, not only with which settings: lists of latents and tasks may change.
    header: dict[str, object] = {
        "settings": settings.model_dump(mode="json", exclude={"batch"}),
        "plan": fingerprint({"wanted": [one.plain() for one in wanted]}),
    }
    if not journal.entries:
        journal.append([header])
    elif journal.entries[0] != header:
        raise EsrError(
            f"{journal.path} holds answers to another plan (settings, latents or tasks): "
            "name another folder."
        )
    done = len(journal.entries) - 1
    backend: LocalBackend | None = None
    while done < len(wanted):
        backend = backend or LocalBackend(runtime, device)
        part = wanted[done : done + settings.batch]
        made = backend.generate([one.row(backend, subject, runtime) for one in part])
        journal.append(
            {"text": backend.decode(one.tokens), "ended": one.stop_reason == "stop"} for one in made
        )
        done += len(part)
        progress(done, len(wanted))
    return [
        (one, str(entry["text"]), bool(entry["ended"]))
        for one, entry in zip(wanted, journal.entries[1:], strict=True)
    ]


def make_examples(
    answers: Sequence[tuple[Wanted, str, bool]], checker: Checker, seed: int
) -> tuple[list[Example], Rejects]:
    """Put examples together from the subject's answers, and check each.

    Returns:
        The good ones, and how many were refused for which reason.
    """
    rejects = Rejects()
    good: list[Example] = []
    by_topic: dict[str, list[tuple[str, bool]]] = {}
    for example in _plain(answers):
        if rejects.count(checker.why_not(example)):
            good.append(example)
            by_topic.setdefault(example.topic, []).append((example.answer, example.ended))
    for number, (one, text, _) in enumerate(answers):
        if one.kind != "drift":
            continue
        if one.topic not in by_topic:
            rejects.add("no usable answer to its task")
            continue
        # One generator each: a rejected example must not change those after it.
        rng = random.Random(f"examples-{seed}-{number}")  # noqa: S311
        answer, ended = rng.choice(by_topic[one.topic])
        drift = cut(text, rng)
        if drift is None:
            rejects.add("off-topic part too short")
            continue
        example = _correction(one, number, drift, _words(rng), answer, ended)
        if rejects.count(checker.why_not(example)):
            good.append(example)
    return good, rejects


def cut(text: str, rng: random.Random, shortest: int = 30) -> str | None:
    """A beginning of steered text after which the correction comes.

    Mostly after a sentence, sometimes within one, as a model may notice at any point.

    Args:
        text: The steered text.
        rng: Decides where.
        shortest: Characters that must stay.

    Returns:
        The beginning with the space or the break that follows it; None when there is too little.
    """
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.end() >= shortest]
    if ends and rng.random() < 0.75:
        return text[: rng.choice(ends)] + rng.choice((" ", " ", "\n\n"))
    if len(text) < shortest + 10:
        return None
    at = rng.randrange(shortest, len(text))
    begun = _LAST_WORD.sub("", text[:at]).rstrip(" ,;:-")
    return begun + rng.choice(("... ", "\n\n", " — ")) if len(begun) >= shortest // 2 else None


def _plain(answers: Sequence[tuple[Wanted, str, bool]]) -> Iterator[Example]:
    for number, (one, text, ended) in enumerate(answers):
        if one.kind != "drift" and text.strip():
            yield Example(
                id=f"{one.kind}-{number}",
                kind="plain" if one.kind == "answer" else "subject",
                prompt=one.prompt,
                topic=one.topic,
                segments=(Segment(part="on_topic", text=text, trained=True),),
                ended=ended,
                writer=WRITER,
            )


def _words(rng: random.Random) -> str:
    """Words that notice a drift and start over."""
    return f"{rng.choice(OPENINGS)} {rng.choice(RESUMPTIONS)}".strip()


def _correction(
    one: Wanted, number: int, drift: str, words: str, answer: str, ended: bool
) -> Example:
    return Example(
        id=f"correction-{number}",
        kind="correction",
        prompt=one.prompt,
        topic=one.topic,
        segments=(
            Segment(part="off_topic", text=drift, trained=False),
            Segment(part="correction", text=words + " ", trained=True),
            Segment(part="on_topic", text=answer.lstrip(), trained=True),
        ),
        ended=ended,
        subject=one.label,
        boost=one.boost,
        writer=WRITER,
    )
