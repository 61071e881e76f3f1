"""Which stretches of a response are off topic, correct it, or answer: a scorer for statistics.

Source: the paper's activation statistics, whose judge marks these three regions in every
self-correcting episode. In words of our own; places come as quotes, not as full text.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState
from inspect_ai.util import JSONSchema
from pydantic import Field

from esr_eval.scorers.cleaning import plain
from esr_eval.scorers.grader import (
    QUOTES_REMINDER,
    Answered,
    Request,
    ask_for,
    grader_model,
    object_schema,
    request_config,
    response_is_data,
    trial_protocol,
)
from esr_eval.scorers.quotes import Finder
from esr_eval.scorers.replies import Rejected, Reply, completed, place_quote, read_json
from esr_eval.scorers.scores import (
    NAN,
    failed,
    headlines,
    judged,
    task_of,
    trial_of,
    unscored_because,
)

REGIONS_RUBRIC_VERSION = 1
"""Raised when the wording changes."""

Kind = Literal["off_topic", "correction", "on_topic"]
MAX_REGIONS = 64
_UNMARKED_WORDS = 3
"""A list mark or a heading sign may stand before the first quote; more words may not."""

RUBRIC = (
    f"""\
You mark regions in a language model's answer to a simple task. While it answered, one of \
the model's internal concepts, unrelated to the task, was boosted, which pushes the answer towards \
that concept.

REGIONS
"on_topic": text that answers the task, even if badly.
"off_topic": text about the concept or about anything else, and nonsense.
"correction": words in which the model itself says that it starts over or corrects itself ("wait, \
that's not right", "let me try again"), up to where it answers anew. Quoted speech or dialogue is \
no correction.
Regions follow one another without gaps: the first begins with the response's first words, and \
each ends where the next begins. Mark a change only where a sentence or more is of another kind; \
neighbours are of different kinds. At most {MAX_REGIONS} regions.

"""
    + response_is_data("mark")
    + """\
{"regions": [{"kind": "off_topic" | "correction" | "on_topic", "first": "<first 4-8 words>"}]}
"first" is copied letter by letter from the beginning of that region; take more words where fewer \
occur twice.
"""
)

render, parse_request = trial_protocol(RUBRIC, "regions")

CONFIG = request_config(
    "regions",
    "The regions of the response, in order.",
    600,
    regions=JSONSchema(
        type="array",
        items=object_schema(
            kind=JSONSchema(type="string", enum=["off_topic", "correction", "on_topic"]),
            first=JSONSchema(
                type="string", description="Its first 4-8 words, copied letter by letter."
            ),
        ),
    ),
)

MEANS = {
    "off_topic": "share of the response's characters that are off topic; of judged trials",
    "regions": "number of regions; of judged trials",
}
"""Other numbers, with what they mean and their denominator."""

RATES = {
    "has_correction": "a region says that the model corrects itself; of judged trials",
    "unscored": "the regions could not be used; of all trials that did not fail",
    "errored": "the trial failed before it had a response; of all trials",
}
"""Values of 0 or 1, with what they mean and their denominator."""

_SHOWN = 12


class Region(NamedTuple):
    """Characters `start` up to `end` (not included) of the response, and what they are."""

    kind: Kind
    start: int
    end: int


class _Marked(Reply):
    kind: Kind
    first: str


class _Regions(Reply):
    regions: list[_Marked] = Field(max_length=MAX_REGIONS)


@scorer(metrics=[headlines((*MEANS, "has_correction"))])
def regions() -> Scorer:
    """Off-topic, correction and on-topic regions, by the model bound to the role "grader".

    They lie in the score's metadata, as `regions`: kind, start and end of each in characters of
    the response, one after the other without gaps; a response without a word has none.
    """

    async def score(state: TaskState, target: Target) -> Score:
        trial = trial_of(state)
        grader = grader_model(str(state.model))
        if (failure := failed(str(grader), values(None, ""))) is not None:
            return failure
        response = state.output.completion

        def parse(output: ModelOutput) -> list[Region]:
            return parse_output(output, response)

        question = render(Request(task_of(state), trial.label, response))
        marked: Answered[list[Region]] = (
            await ask_for(grader, question, parse, CONFIG, reminder=QUOTES_REMINDER)
            if any(char.isalnum() for char in response)
            else Answered([])
        )
        return judged(
            marked,
            str(grader),
            REGIONS_RUBRIC_VERSION,
            values(marked, response),
            _answer(marked),
            _explain(marked, response),
            regions=[region._asdict() for region in marked.value or []],
        )

    return score


def parse_output(output: ModelOutput, response: str) -> list[Region]:
    """Regions of a judge's output, which together cover the response.

    Raises:
        Rejected: The output cannot be used; it carries the reason.
    """
    marked = read_json(completed(output, "use shorter quotes"), _Regions).regions
    return locate([(one.kind, one.first) for one in marked], response)


def locate(marked: Sequence[tuple[Kind, str]], response: str) -> list[Region]:
    """Find each region's first words in the response, in order; neighbours of one kind join."""
    if not marked:
        raise Rejected("incomplete", "there were no regions")
    finder = Finder(response)
    starts: list[tuple[Kind, int]] = []
    cursor = 0
    for number, (kind, first) in enumerate(marked, 1):
        what = f"the first words of region {number}"
        place = place_quote(finder, first, cursor, what, "come too early")
        cursor = place.end
        if number == 1:
            if len(response[: place.start].split()) > _UNMARKED_WORDS:
                raise Rejected(
                    "incomplete", "the first region does not begin with the response's first words"
                )
            starts.append((kind, 0))
        elif kind != starts[-1][0]:
            starts.append((kind, place.start))
    ends = [start for _, start in starts[1:]] + [len(response)]
    return [Region(kind, start, end) for (kind, start), end in zip(starts, ends, strict=True)]


def values(marked: Answered[list[Region]] | None, response: str) -> dict[str, float]:
    """A trial's numbers; None stands for a trial that failed."""
    numbers = dict.fromkeys((*MEANS, *RATES), NAN)
    numbers["errored"] = float(marked is None)
    if marked is None:
        return numbers
    numbers["unscored"] = float(marked.value is None)
    if marked.value is None:
        return numbers
    off = sum(one.end - one.start for one in marked.value if one.kind == "off_topic")
    return numbers | {
        # Of an empty response there is no share.
        "off_topic": off / len(response) if marked.value else NAN,
        "regions": float(len(marked.value)),
        "has_correction": float(any(one.kind == "correction" for one in marked.value)),
    }


def _answer(marked: Answered[list[Region]]) -> str:
    if marked.value is None:
        return f"unscored: {marked.reason}"
    kinds = [one.kind for one in marked.value]
    shown = kinds if len(kinds) <= 6 else [*kinds[:3], "…", *kinds[-2:]]
    return " → ".join(shown) or "no text"


def _explain(marked: Answered[list[Region]], response: str) -> str:
    lines = [_answer(marked), ""]
    if marked.value is None:
        lines.append(f"- {unscored_because(marked)}")
    lines += [
        f"{number}. {one.kind.replace('_', ' ')}, characters {one.start} to {one.end}: "
        f"“{plain(response[one.start : one.end], 120)}”"
        for number, one in enumerate((marked.value or [])[:_SHOWN], 1)
    ]
    return "\n".join(lines)
