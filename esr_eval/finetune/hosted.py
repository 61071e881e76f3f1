"""The hosted writer: any Inspect model writes the parts of examples, many at a time, resumable."""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
from inspect_ai.model import (
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.util import JSONSchema
from pydantic import BaseModel, ConfigDict, ValidationError

from esr_eval.errors import EsrError
from esr_eval.finetune.examples import (
    SUBJECT_FRAME,
    Checker,
    Example,
    Journal,
    Kind,
    Part,
    Rejects,
    Segment,
    off_topic_subjects,
    training_tasks,
)

MAX_TOKENS = 900
FAILURES_IN_A_ROW = 8
"""After so many requests that failed one after the other, writing stops: the rest would, too."""

_CORRECTION = """\
Write training text for a language model that is to learn to notice when its own answer has gone \
off-topic. The user asked: "{prompt}"

Write an answer in three parts:
- "off_topic": two to four sentences that begin as if to answer and are really about {subject}. \
They do not answer the user.
- "correction": one or two short sentences that notice it and start over, in words of your own, \
for example "Wait, that's not right. Let me start over."
- "on_topic": a good, complete answer to the user in 60 to 150 words that never mentions {subject}.

Reply with one JSON object with these three keys and nothing else."""

_PLAIN = """\
Answer the user in 60 to 150 words, plainly and to the point. The user says: "{prompt}"

Reply with one JSON object with the key "on_topic" (the answer) and nothing else."""

_JSON = re.compile(r"\{.*\}", re.DOTALL)


class _Written(BaseModel):
    model_config = ConfigDict(extra="ignore")

    on_topic: str
    off_topic: str = ""
    correction: str = ""


class Order(BaseModel):
    """One example that the writer shall write."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Kind
    prompt: str
    topic: str
    subject: str | None = None

    def request(self) -> str:
        """The words that ask for it."""
        if self.kind == "correction":
            return _CORRECTION.format(prompt=self.prompt, subject=self.subject)
        return _PLAIN.format(prompt=self.prompt)


def orders(corrections: int, plain: int, seed: int) -> list[Order]:
    """What to write: corrections over all tasks and subjects, and normal answers.

    A fifth of the normal ones tell about an off-topic subject that was asked for.
    """
    rng = random.Random(f"hosted-{seed}")  # noqa: S311
    tasks = rng.sample(training_tasks(), len(training_tasks()))
    subjects = rng.sample(off_topic_subjects(), len(off_topic_subjects()))
    wanted = [
        Order(
            id=f"correction-{i}",
            kind="correction",
            prompt=task.text,
            topic=task.topic,
            # Drawn: 210 tasks and 50 subjects in turn would always meet in the same pairs.
            subject=rng.choice(subjects),
        )
        for i in range(corrections)
        for task in (tasks[i % len(tasks)],)
    ]
    for i in range(plain):
        if i % 5 == 4:
            subject = subjects[(i // 5) % len(subjects)]
            prompt = SUBJECT_FRAME.format(subject=subject)
            wanted.append(Order(id=f"subject-{i}", kind="subject", prompt=prompt, topic=subject))
        else:
            task = tasks[i % len(tasks)]
            wanted.append(Order(id=f"plain-{i}", kind="plain", prompt=task.text, topic=task.topic))
    return wanted


def parse(order: Order, output: ModelOutput, writer: str) -> Example | str:
    """Read the writer's reply; a reason where it cannot be used."""
    if output.stop_reason == "content_filter":
        return "writer refused"
    if output.stop_reason == "max_tokens":
        return "writer's reply was cut"
    found = _JSON.search(output.completion)
    try:
        written = _Written.model_validate(json.loads(found[0] if found else ""))
    except (ValueError, ValidationError):
        return "writer's reply is not the JSON asked for"
    texts = {name: text.strip() for name, text in written.model_dump().items()}
    wanted: tuple[Part, ...] = (
        ("off_topic", "correction", "on_topic") if order.kind == "correction" else ("on_topic",)
    )
    if missing := [name for name in wanted if not texts[name]]:
        return f"part missing: {missing[0]}"
    segments = [
        Segment(
            part=name,
            text=texts[name] + (" " if name != "on_topic" else ""),
            trained=name != "off_topic",
        )
        for name in wanted
    ]
    return Example(
        id=order.id,
        kind=order.kind,
        prompt=order.prompt,
        topic=order.topic,
        segments=tuple(segments),
        ended=True,
        subject=order.subject,
        writer=writer,
    )


async def write_hosted(
    model: str | Model,
    wanted: Sequence[Order],
    folder: Path,
    *,
    checker: Checker,
    concurrency: int = 10,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Example], Rejects]:
    """Have a model write examples; what is written already is not asked for again.

    A rejected example is not asked for again either: its reason is kept and counted. A request
    that failed is not in the journal, so the next run asks again.

    Args:
        model: Name of an Inspect model, or the model.
        wanted: What to write.
        folder: Keeps a journal of replies.
        checker: Checks each example.
        concurrency: Requests at a time.
        temperature: Of the writer.
        progress: Called with how many are done, of how many.

    Raises:
        EsrError: The writer cannot be reached, or fails again and again.
    """
    writer = get_model(model)
    name = str(writer)
    journal = Journal(folder / "written.jsonl")
    known = {str(entry["id"]): entry for entry in journal.entries}
    for order in wanted:
        if order.id in known and known[order.id]["request"] != order.request():
            raise EsrError(f"{journal.path} was written for another plan: name another folder.")
    config = GenerateConfig(
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        response_schema=ResponseSchema(
            name="example", json_schema=JSONSchema.model_validate(_Written.model_json_schema())
        ),
    )
    limiter = anyio.CapacityLimiter(concurrency)
    failures: list[str] = []
    todo = [order for order in wanted if order.id not in known]

    async def write(order: Order) -> None:
        async with limiter:
            if len(failures) >= FAILURES_IN_A_ROW:
                return
            try:
                output = await writer.generate(
                    [ChatMessageUser(content=order.request())], config=config
                )
            except Exception as error:  # every provider raises errors of its own
                failures.append(f"{type(error).__name__}: {error}"[:200])
                return
            failures.clear()
            parsed = parse(order, output, name)
            entry: dict[str, object] = {"id": order.id, "request": order.request()}
            if isinstance(parsed, str):
                entry["reason"] = parsed
            else:
                entry["example"] = parsed.model_dump(mode="json")
            journal.append([entry])
            progress(len(journal.entries), len(wanted))

    async with anyio.create_task_group() as group:
        for order in todo:
            group.start_soon(write, order)
    known = {str(entry["id"]): entry for entry in journal.entries}
    if unwritten := [order.id for order in wanted if order.id not in known]:
        raise EsrError(
            f"{name} failed on {len(unwritten)} of {len(wanted)} examples "
            f"({failures[-1] if failures else 'some in between'}): run the same command to go on."
        )
    return _checked([known[order.id] for order in wanted], checker)


def _checked(
    entries: Sequence[dict[str, object]], checker: Checker
) -> tuple[list[Example], Rejects]:
    rejects = Rejects()
    good = []
    for entry in entries:
        if "reason" in entry:
            rejects.add(str(entry["reason"]))
            continue
        example = Example.model_validate(entry["example"])
        if rejects.count(checker.why_not(example)):
            good.append(example)
    return good, rejects
