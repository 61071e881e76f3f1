"""Token choice inside transformers' greedy loop: per-row seeds, penalties and limits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import RowSampler, Scores


class Decoding:
    """State of one batch while it generates: what to choose next, who has ended, and where."""

    def __init__(
        self,
        rows: "Sequence[Row]",
        ids: Tensor,
        mask: Tensor,
        end_tokens: Sequence[int],
        compare: bool = False,
        compiled: Scores | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            rows: The batch.
            ids: The left-padded prompts, (batch, position).
            mask: Their attention mask, (batch, position).
            end_tokens: Ids that end a response.
            compare: Whether to note how far the first two rows' logits are apart (`apart`).
            compiled: See `sampling.compiled_scores`.
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
        self.finite = torch.ones_like(self.alive)
        self.apart = 0.0
        self._compare = compare
        self._compiled = compiled
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
            if self._compare:
                self.apart = float((logits[1].float() - logits[0].float()).abs().max())
        # A row without one finite best logit ends here: any token would be made up.
        self.finite &= ~self.alive | torch.isfinite(logits.amax(-1))
        self.alive &= self.finite
        steps = torch.full_like(self.limits, self._step)
        chosen = self._sampler.choose(logits, self._seen, steps, self._compiled)
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
        **NEUTRAL,
    )


NEUTRAL: dict[str, object] = {
    # What is left open in a request is taken from the model's own settings: a penalty would count
    # twice, as the rows bring theirs.
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,  # and so no min_length
    "num_beams": 1,
}
"""Settings under which transformers' loop only follows."""
OVERRULED = frozenset(
    {
        *NEUTRAL,
        *("do_sample", "max_new_tokens", "max_length", "min_length", "eos_token_id"),
        *("pad_token_id", "use_cache", "bos_token_id", "decoder_start_token_id"),
        # Without sampling they are not looked at.
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        # How the cache is kept, and who wrote the file.
        *("cache_implementation", "cache_config", "transformers_version"),
    }
)
"""Settings of a model's own that have no say beside those of a request."""


def meddling(settings: GenerationConfig) -> dict[str, object]:
    """A model's own settings that would have a say in a loop that cannot be rid of them.

    Args:
        settings: The model's own, as its repository has them.
    """
    plain = GenerationConfig().to_dict()
    return {
        name: value
        for name, value in settings.to_dict().items()
        if name not in OVERRULED
        and not name.startswith("_")
        and value != plain.get(name)
        # Off: some versions of transformers write False where others leave None.
        and not (value is False and plain.get(name) is None)
    }
