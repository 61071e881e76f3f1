"""Examples as token ids, with labels where the loss counts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from esr_eval.errors import EsrError
from esr_eval.finetune.data import Example, Push

IGNORED = -100
"""Label of a token that the loss leaves out (PyTorch's convention)."""


class Encoded(NamedTuple):
    """One example for the trainer.

    Attributes:
        input_ids: The chat with its answer, special tokens included.
        labels: The same ids where they are trained, `IGNORED` elsewhere.
        boost: What is on while it is trained.
    """

    input_ids: list[int]
    labels: list[int]
    boost: Push | None


def encode(example: Example, tokenizer: Any, max_length: int) -> Encoded:
    """Turn an example into tokens; a token is trained if its segment is.

    The answer is tokenised whole, as the model would write it. A token that straddles a border
    belongs to the segment of its last character. The end of the answer is trained where the
    answer ends by itself.

    Raises:
        EsrError: Nothing of the example is trained within `max_length` tokens.
    """
    prompt_text = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}], tokenize=False, add_generation_prompt=True
    )
    prompt = list(tokenizer(prompt_text, add_special_tokens=False)["input_ids"])
    answer = tokenizer(example.answer, add_special_tokens=False, return_offsets_mapping=True)
    borders = _borders(example)
    labels = [
        token if _trained_at(end - 1, borders) else IGNORED
        for token, (_, end) in zip(answer["input_ids"], answer["offset_mapping"], strict=True)
    ]
    ids = list(answer["input_ids"])
    if example.ended:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id if example.segments[-1].trained else IGNORED)
    ids, labels = (prompt + ids)[:max_length], ([IGNORED] * len(prompt) + labels)[:max_length]
    if all(label == IGNORED for label in labels):
        raise EsrError(
            f"Example {example.id} has nothing to train within {max_length} tokens: "
            "raise the sequence length."
        )
    return Encoded(ids, labels, example.boost)


def _borders(example: Example) -> list[tuple[int, bool]]:
    """Where each segment ends in the answer, and whether it is trained."""
    borders, at = [], 0
    for segment in example.segments:
        at += len(segment.text)
        borders.append((at, segment.trained))
    return borders


def _trained_at(character: int, borders: Sequence[tuple[int, bool]]) -> bool:
    return next((trained for end, trained in borders if character < end), borders[-1][1])
