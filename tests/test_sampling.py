import numpy as np
import pytest
import torch

from esr_eval.sampling import RowSampler, Sampling, row_uniforms


def sampling(seed=0, temperature=1.0, top_p=None, top_k=None, penalty=1.0, n=16):
    return Sampling(seed, temperature, top_p, top_k, penalty, n)


def nothing_seen(logits):
    return torch.zeros_like(logits, dtype=torch.bool)


def test_uniforms_depend_on_the_seed_alone_and_a_longer_draw_begins_alike():
    assert torch.equal(row_uniforms(7, 5), row_uniforms(7, 50)[:5])
    assert not torch.equal(row_uniforms(7, 5), row_uniforms(8, 5))


def test_frequencies_follow_the_softmax():
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    n = 4000
    logits = probabilities.log().expand(n, -1)
    sampler = RowSampler([sampling(seed=s) for s in range(n)])
    drawn = sampler.choose(logits, nothing_seen(logits), 3)
    counts = np.bincount(drawn.numpy(), minlength=4) / n
    # Four standard errors of a proportion near one half at this n.
    assert np.abs(counts - probabilities.numpy()).max() < 4 * 0.5 / n**0.5


def test_temperature_sharpens_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 1.2, 0.8]]).expand(500, -1)
    hot = RowSampler([sampling(s, 1.0) for s in range(500)])
    cold = RowSampler([sampling(s, 0.05) for s in range(500)])
    greedy = RowSampler([sampling(s, 0.0) for s in range(500)])
    seen = nothing_seen(logits)
    assert (greedy.choose(logits, seen, 0) == 1).all()
    assert (cold.choose(logits, seen, 0) == 1).float().mean() > 0.95
    assert (hot.choose(logits, seen, 0) == 1).float().mean() < 0.6


def test_rows_are_mixed_freely():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows = [
        sampling(1, 0.6),
        sampling(2, 0.0),
        sampling(3, 1.5, top_k=3),
        sampling(4, 0.9, top_p=0.5),
        sampling(5, 0.6, penalty=1.4),
        sampling(6, 0.6),
    ]
    seen = nothing_seen(logits)
    seen[:, ::3] = True
    together = RowSampler(rows).choose(logits, seen, 5)
    for b, row in enumerate(rows):
        alone = RowSampler([row]).choose(logits[b : b + 1], seen[b : b + 1], 5)
        assert alone.item() == together[b].item()


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(2, None, {0, 1}), (None, 0.6, {0, 1})])
def test_truncation_keeps_the_likeliest(top_k, top_p, allowed):
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(400, -1)
    rows = [sampling(s, 1.0, top_p=top_p, top_k=top_k) for s in range(400)]
    drawn = RowSampler(rows).choose(logits, nothing_seen(logits), 0)
    assert set(drawn.tolist()) == allowed


def test_repetition_penalty_is_the_usual_one():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, 7, 7, 20]])
    seen = nothing_seen(logits).scatter_(1, ids, True)
    ours = RowSampler([sampling(0, 0.0, penalty=1.8)]).choose(logits, seen, 0)
    theirs = RepetitionPenaltyLogitsProcessor(1.8)(ids, logits.clone()).argmax(-1)
    assert torch.equal(ours, theirs)
