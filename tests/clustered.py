"""Clustered data with known rates, many data sets at a time."""

import numpy as np
from scipy.special import ndtr
from scipy.stats import beta


def propensities(rng, shape, rate, icc):
    """Each latent's own rate: beta, so that trials are beta-binomial with that correlation."""
    spread = 1 / icc - 1
    return rng.beta(rate * spread, (1 - rate) * spread, shape)


def alike_propensities(rng, shape, rates, icc, latent_correlation=1.0):
    """Two conditions' rates of the same latents, joined by a normal copula."""
    spread = 1 / icc - 1
    shared = rng.standard_normal(shape)
    own = rng.standard_normal(shape)
    other = latent_correlation * shared + np.sqrt(1 - latent_correlation**2) * own
    return tuple(
        beta.ppf(ndtr(normal), rate * spread, (1 - rate) * spread)
        for normal, rate in zip((shared, other), rates, strict=True)
    )
