"""Token choice inside transformers' greedy loop: per-row seeds, penalties and limits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from esr_eval.backends.base import Row
from esr_eval.sampling import RowSampler


class Decoding:
    """State of one batch while it generates: what to choose next, who has ended, and where."""

    def __init__(
        self, rows: "Sequence[Row]", ids: Tensor, mask: Tensor, end_tokens: Sequence[int]
    ) -> None:
        """Prepare a batch.

        Args:
            rows: The batch.
            ids: The left-padded prompts, (batch, position).
            mask: Their attention mask, (batch, position).
            end_tokens: Ids that end a response.
        """
        device = mask.device
        self._sampler = RowSampler([row.sampling for row in rows], device)
        self._ids = ids
        self.limits = torch.tensor([row.sampling.max_tokens for row in rows], device=device)
        self._ends = torch.tensor(list(end_tokens), device=device)
        self._mask = mask.bool()
        self._prompt_lengths = self._mask.sum(-1)
        self._seen: Tensor | None = None
        self._step = 0
        self.alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        self.ended_by_model = torch.zeros_like(self.alive)
        self.generated = torch.zeros_like(self._prompt_lengths)
        self._chosen: list[Tensor] = []

    def to(self, device: torch.device) -> "Decoding":
        """Move the state to a device, in place."""
        if self.alive.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
            self._sampler.to(device)
        return self

    def positions(self) -> Tensor:
        """Row-relative positions of the forward pass under way, (batch, columns of the pass).

        -1 at padding and in rows that have ended.
        """
        if self._step == 0:
            return (self._mask.long().cumsum(-1) - 1).masked_fill(~self._mask, -1)
        fed = self._prompt_lengths + self._step - 1
        return fed.masked_fill(~self.alive, -1).unsqueeze(1)

    def choose(self, logits: Tensor) -> Tensor:
        """Choose every row's next token and note which rows that ends.

        Args:
            logits: Next-token logits, (batch, vocabulary).

        Returns:
            Token ids, (batch,); an end token in rows that have ended.
        """
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            rows, columns = self._mask.nonzero(as_tuple=True)
            self._seen[rows, self._ids[rows, columns]] = True
        steps = torch.full_like(self.limits, self._step)
        chosen = self._sampler.choose(logits, self._seen, steps)
        chosen = torch.where(self.alive, chosen, self._ends[0])
        self._chosen.append(chosen)
        self._seen.scatter_(1, chosen.unsqueeze(1), True)
        ends = torch.isin(chosen, self._ends)
        self.ended_by_model |= self.alive & ends
        self.generated += (self.alive & ~ends).long()
        self.alive &= ~ends & (self.generated < self.limits)
        self._step += 1
        return chosen

    def tokens(self) -> Tensor:
        """What was chosen so far, (batch, steps), meaningless after a row's end."""
        return torch.stack(self._chosen, dim=1)


class ChooseTokens(LogitsProcessor):  # type: ignore[misc]
    """Leaves only the chosen token possible, so that transformers' greedy loop follows."""

    def __init__(self, decoding: Decoding) -> None:
        """Choose by this batch's state."""
        self._decoding = decoding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores that are -inf everywhere but at the chosen token."""
        chosen = self._decoding.choose(scores)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen.unsqueeze(1), 0.0)


class EndRows(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at an end token or at the row's own limit."""

    def __init__(self, decoding: Decoding) -> None:
        """Stop by this batch's state."""
        self._decoding = decoding

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Which rows have ended, (batch,)."""
        return ~self._decoding.alive


def greedy_settings(limits: Tensor, end_tokens: Sequence[int], pad: int) -> GenerationConfig:
    """Settings of transformers' loop, which only follows what is chosen here.

    Args:
        limits: Most tokens of each row.
        end_tokens: Ids that end a response.
        pad: Id that fills rows that have ended.
    """
    return GenerationConfig(
        max_new_tokens=int(limits.max()),
        do_sample=False,
        eos_token_id=list(end_tokens),
        pad_token_id=pad,
        use_cache=True,
        # What is left open here is taken from the model's own settings: a penalty would count
        # twice, as the rows bring theirs.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,  # and so no min_length
        num_beams=1,
    )
