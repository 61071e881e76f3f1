import numpy as np
import pytest
import torch
from scipy import stats

from esr_eval.steering.sampling import RowSampler, Sampling, compiled_scores, gumbel_noise, row_key


def sampling(seed=0, temperature=1.0, top_p=None, top_k=None, penalty=1.0, n=16):
    return Sampling(seed, temperature, top_p, top_k, penalty, n)


def nothing_seen(logits):
    return torch.zeros_like(logits, dtype=torch.bool)


def at(step, rows):
    return torch.full((rows,), step)


def test_the_bits_are_splitmix64s():
    noise = gumbel_noise(torch.tensor([0]), torch.tensor([0]), 3)[0]
    uniforms = (-(-noise).exp()).exp()
    # The first three outputs of the published generator from state 0.
    published = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]) / 2**64
    np.testing.assert_allclose(uniforms, published, atol=1e-14)


def test_noise_is_gumbel_and_differs_by_seed_step_and_token():
    keys = torch.tensor([row_key(seed) for seed in (7, 7, 8)])
    noise = gumbel_noise(keys, torch.tensor([3, 4, 3]), 100_000)
    for row in noise:
        assert stats.kstest(row.numpy(), "gumbel_r").pvalue > 1e-3
    together = np.corrcoef(np.vstack([noise.numpy(), noise[:1].roll(1).numpy()]))
    assert np.abs(together - np.eye(4)).max() < 5 / 100_000**0.5
    assert torch.equal(noise[1, :50], gumbel_noise(keys[1:2], torch.tensor([4]), 50)[0])


def test_a_rounding_error_moves_a_token_no_more_often_than_its_size():
    rows, error = 4000, 1e-4
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 2000, generator=generator)
    rounded = logits + error * (2 * torch.rand(logits.shape, generator=generator) - 1)
    sampler = RowSampler([sampling(seed=s) for s in range(rows)])
    one, other = (sampler.choose(x, nothing_seen(x), at(0, rows)) for x in (logits, rounded))
    # The best two differ by an exponential of mean 1 at most; the errors by 2 * error at most.
    assert (one != other).sum() <= stats.binom.ppf(0.999, rows, 2 * error)


def test_frequencies_follow_the_softmax():
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    n = 4000
    logits = probabilities.log().expand(n, -1)
    sampler = RowSampler([sampling(seed=s) for s in range(n)])
    drawn = sampler.choose(logits, nothing_seen(logits), at(3, n))
    counts = np.bincount(drawn.numpy(), minlength=4) / n
    # Four standard errors of a proportion near one half at this n.
    assert np.abs(counts - probabilities.numpy()).max() < 4 * 0.5 / n**0.5


def test_temperature_sharpens_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 1.2, 0.8]]).expand(500, -1)
    hot = RowSampler([sampling(s, 1.0) for s in range(500)])
    cold = RowSampler([sampling(s, 0.05) for s in range(500)])
    greedy = RowSampler([sampling(s, 0.0) for s in range(500)])
    seen = nothing_seen(logits)
    assert (greedy.choose(logits, seen, at(0, 500)) == 1).all()
    assert (cold.choose(logits, seen, at(0, 500)) == 1).float().mean() > 0.95
    assert (hot.choose(logits, seen, at(0, 500)) == 1).float().mean() < 0.6


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
    together = RowSampler(rows).choose(logits, seen, at(5, 6))
    for b, row in enumerate(rows):
        alone = RowSampler([row]).choose(logits[b : b + 1], seen[b : b + 1], at(5, 1))
        assert alone.item() == together[b].item()


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(2, None, {0, 1}), (None, 0.6, {0, 1})])
def test_truncation_keeps_the_likeliest(top_k, top_p, allowed):
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(400, -1)
    rows = [sampling(s, 1.0, top_p=top_p, top_k=top_k) for s in range(400)]
    drawn = RowSampler(rows).choose(logits, nothing_seen(logits), at(0, 400))
    assert set(drawn.tolist()) == allowed


def test_repetition_penalty_is_the_usual_one():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, 7, 7, 20]])
    seen = nothing_seen(logits).scatter_(1, ids, True)
    ours = RowSampler([sampling(0, 0.0, penalty=1.8)]).choose(logits, seen, at(0, 1))
    theirs = RepetitionPenaltyLogitsProcessor(1.8)(ids, logits.clone()).argmax(-1)
    assert torch.equal(ours, theirs)


def test_compiled_scores_are_the_scores():
    compiled = compiled_scores(501, torch.float32, "cpu")
    if compiled is None:
        pytest.skip("there is no compiler")
    logits = 4 * torch.randn(9, 501, generator=torch.Generator().manual_seed(1))
    sampler = RowSampler([sampling(seed, 0.4 * (seed % 3), penalty=1.2) for seed in range(9)])
    for step in range(3):
        chosen = sampler.choose(logits, logits > 1, at(step, 9))
        assert torch.equal(chosen, sampler.choose(logits, logits > 1, at(step, 9), compiled))
