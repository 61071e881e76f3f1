"""The sparse edit equals the dense encode-edit-decode-plus-error form on sae-lens's own SAEs."""

import pytest
import sae_lens
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatchingPursuitSAE,
    MatchingPursuitSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

from esr_eval.sae.files import read_sae_config
from esr_eval.sae.sparse import SparseSAE
from esr_eval.spec import Boost, Clamp, Runtime, SAERef, Steering
from esr_eval.steering.plan import plan_batch
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling

D_MODEL, N_LATENTS, LAYER = 48, 160, 3
CPU = torch.device("cpu")
ROW_SAMPLING = Sampling(0, 0.0, None, None, 1.0, 8)

CASES = [
    (StandardSAE, StandardSAEConfig, {}),
    (JumpReLUSAE, JumpReLUSAEConfig, {}),
    (TopKSAE, TopKSAEConfig, {"k": 12}),
    (TopKSAE, TopKSAEConfig, {"k": 12, "rescale_acts_by_decoder_norm": True}),
    (GatedSAE, GatedSAEConfig, {}),
    (MatchingPursuitSAE, MatchingPursuitSAEConfig, {"max_iterations": 5}),
]
if hasattr(sae_lens, "AbsTopKSAE"):  # which older sae-lens does not know
    scaled = {"k": 12, "rescale_acts_by_decoder_norm": True}
    CASES.append((sae_lens.AbsTopKSAE, sae_lens.AbsTopKSAEConfig, scaled))


def make_sae(cls, config_cls, extra, apply_b_dec, normalisation, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = config_cls(
        d_in=D_MODEL,
        d_sae=N_LATENTS,
        dtype="float32",
        device="cpu",
        apply_b_dec_to_input=apply_b_dec,
        normalize_activations=normalisation,
        **extra,
    )
    sae = cls(config)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = values.abs() if name == "threshold" else values
    if cls is MatchingPursuitSAE:  # its pursuit wants directions of norm 1
        sae.W_dec.data /= sae.W_dec.data.norm(dim=-1, keepdim=True)
    return sae


def dense(sae, x, clamps, boosts):
    """d(g(f(x))) + (x - d(f(x))), as the paper writes it."""
    f = sae.encode(x)
    reconstructed = sae.decode(f)
    g = f.clone()
    for latent, value in clamps:
        g[..., latent] = value
    for latent, strength in boosts:
        g[..., latent] += strength
    # sae-lens remembers the input's scale between one encode and the decode after it.
    sae.encode(x)
    return sae.decode(g) + (x - reconstructed)


def steering(edits):
    runtime = Runtime(subject="x", model="x", sae=SAERef(release="x"), steering_layer=LAYER)
    return Steering(runtime=runtime, edits=tuple(edits))


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize(("cls", "config_cls", "extra"), CASES)
def test_sparse_equals_dense(tmp_path, cls, config_cls, extra, apply_b_dec, normalisation):
    sae = make_sae(cls, config_cls, extra, apply_b_dec, normalisation)
    sae.save_model(tmp_path)
    sparse = SparseSAE(read_sae_config(tmp_path))
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(3, 7, D_MODEL, generator=generator) * 3
        picked = torch.randperm(N_LATENTS, generator=generator)[:8].tolist()
        boosts = [(i, float(torch.randn(1, generator=generator)) * 9) for i in picked[:4]]
        clamps = [(i, float(torch.rand(1, generator=generator)) * 5) for i in picked[3:]]
        # Latent 3 of the picked is clamped and boosted; another is boosted twice.
        boosts.append((picked[0], 2.5))
        edits = [Boost(latent=i, strength=s, layer=LAYER) for i, s in boosts]
        edits += [Clamp(latent=i, value=v, layer=LAYER) for i, v in clamps]
        edits.append(edits[-1])  # the same clamp twice holds the latent once
        rows = [
            Row(tuple(range(7)), ROW_SAMPLING, steering(edits)),
            Row(tuple(range(7)), ROW_SAMPLING, None),
            Row(tuple(range(7)), ROW_SAMPLING, steering(edits[:1])),
        ]
        layer_edits = plan_batch(rows, sparse, lambda _: CPU).edits[LAYER]
        with torch.no_grad():
            delta = layer_edits.delta(x, torch.arange(7).expand(3, 7))
            want = dense(sae, x[0], clamps, boosts)
            want_single = dense(sae, x[2], [], boosts[:1])
        error = (x[0] + delta[0] - want).norm() / (want - x[0]).norm()
        assert error < 1e-5
        assert (delta[1] == 0).all()
        assert (x[2] + delta[2] - want_single).norm() / (want_single - x[2]).norm() < 1e-5


def test_ablating_an_active_latent_removes_its_contribution(tmp_path):
    sae = make_sae(StandardSAE, StandardSAEConfig, {}, True, "none")
    sae.save_model(tmp_path)
    x = torch.randn(1, 1, D_MODEL, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        latent = int(sae.encode(x)[0, 0].argmax())
        rows = [Row((0,), ROW_SAMPLING, steering([Clamp(latent=latent, layer=LAYER)]))]
        edits = plan_batch(rows, SparseSAE(read_sae_config(tmp_path)), lambda _: CPU).edits[LAYER]
        removed = edits.delta(x, torch.zeros(1, 1, dtype=torch.long))
        want = -sae.encode(x)[0, 0, latent] * sae.W_dec[latent]
    assert torch.allclose(removed[0, 0], want, rtol=1e-5, atol=1e-6)
    assert removed.norm() > 0.1


def test_positions_outside_the_span_stay_as_they_are(tmp_path):
    make_sae(StandardSAE, StandardSAEConfig, {}, True, "none").save_model(tmp_path)
    edit = Boost(latent=1, strength=4.0, layer=LAYER, positions="generated", until_token=2)
    rows = [Row((5, 6, 7), ROW_SAMPLING, steering([edit]))]
    edits = plan_batch(rows, SparseSAE(read_sae_config(tmp_path)), lambda _: CPU).edits[LAYER]
    at = torch.tensor([[-1, 0, 1, 2, 3, 4, 5]])
    delta = edits.delta(torch.randn(1, 7, D_MODEL), at)
    assert (delta[0].abs().sum(-1) > 0).tolist() == [False] * 4 + [True, True, False]
    assert edits.active(at)[0].any(-1).tolist() == [False] * 4 + [True, True, False]
