"""Simulated dose-response curves, and the error of both methods of calibration on them.

`python tests/curves.py` prints the table of docs/strengths.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import norm, truncnorm

from esr_eval.calibration.methods import begin
from esr_eval.subjects import CalibrationPrior, find_subject

TARGET = 0.3
SPREAD = 1.4
"""Scores are Beta distributed; this gives a standard deviation of 28 points near the target."""


class Kind(NamedTuple):
    """A kind of curve.

    Attributes:
        shape: What falls: logistic in the strength, normal in its logarithm, or a ramp.
        slopes: Range of the slopes.
        spread: Of the scores; None for scores near 20 or near 85, never between.
        off: Factor by which the prior's mean is too small.
    """

    shape: str = "logistic"
    slopes: tuple[float, float] = (3, 10)
    spread: float | None = SPREAD
    off: float = 1.0


KINDS = {
    "logistic": Kind(),
    "steep": Kind(slopes=(10, 20)),
    "flat": Kind(slopes=(1.5, 3)),
    "log-normal": Kind("log-normal", (1.5, 6)),
    "ramp": Kind("ramp", (0.1, 0.8)),
    "bimodal": Kind(spread=None),
    "little noise": Kind(spread=8),
    "much noise": Kind(spread=0.2),
    "prior too low": Kind(off=2),
    "prior too high": Kind(off=0.5),
}


class Curve(NamedTuple):
    """One latent: its mean score at a strength, and scores there; shares of 100."""

    mean: Callable[[float], float]
    score: Callable[[float], float]


def draw(kind: Kind, prior: CalibrationPrior, rng: np.random.Generator) -> Curve:
    """A latent whose threshold the prior expects, but for `kind.off`."""
    low, high = (np.array([prior.lower, prior.upper]) - prior.prior_mean) / prior.prior_std
    truth = prior.prior_mean + prior.prior_std * float(truncnorm.rvs(low, high, random_state=rng))
    truth = float(np.clip(kind.off * truth, (prior.upper - prior.lower) / 1000, prior.upper))
    top, slope = rng.uniform(0.85, 0.98), rng.uniform(*kind.slopes)
    floor = 0.0
    if kind.spread is None:
        floor, top = 0.2, 0.85
    at = (TARGET - floor) / (top - floor)

    def falls(ratio: float) -> float:
        if kind.shape == "ramp":
            return float(np.clip(1 - (ratio - slope) * (1 - at) / (1 - slope), 0, 1))
        if kind.shape == "log-normal":
            return float(norm.cdf(norm.ppf(at) - slope * np.log(max(ratio, 1e-9))))
        return float(expit(-slope * (ratio - 1) + np.log(at / (1 - at))))

    def mean(strength: float) -> float:
        return floor + (top - floor) * falls(strength / truth)

    def score(strength: float) -> float:
        if kind.spread is None:
            good = rng.random() < falls(strength / truth)
            return float(np.clip(rng.normal(top if good else floor, 0.08), 0, 1))
        share = mean(strength)
        return float(rng.beta(kind.spread * share + 1e-6, kind.spread * (1 - share) + 1e-6))

    return Curve(mean, score)


def searched(prior: CalibrationPrior, curve: Curve) -> tuple[float, int]:
    """The score at the strength that a search finds, and the responses that it takes."""
    search = begin(prior)
    while not search.finished:
        strength = search.next_strength
        search = search.observe([100 * curve.score(strength) for _ in range(search.responses)])
    return 100 * curve.mean(search.strength), sum(len(one.scores) for one in search.rounds)


def errors(
    kind: Kind, prior: CalibrationPrior, latents: int, seed: int = 2602
) -> tuple[npt.NDArray[np.float64], float]:
    """Distances of the scores found from the target, and responses per latent."""
    found = []
    for latent in range(latents):
        # The same latents for every method.
        rng = np.random.default_rng([seed, latent])
        found.append(searched(prior, draw(kind, prior, rng)))
    scores, responses = np.array(found).T
    return scores - 100 * TARGET, float(responses.mean())


def root_mean_square(distances: npt.NDArray[np.float64]) -> float:
    """Of scores from the target."""
    return float(np.sqrt(np.mean(distances**2)))


def prior_of(name: str, **changes: Any) -> CalibrationPrior:
    """The prior of a subject with changes."""
    prior = find_subject(name).calibration
    assert prior is not None
    return prior.model_copy(update=changes)


def main(latents: int = 240) -> None:
    """Print the table: all kinds of curves on 50 responses of the paper's, some on fewer."""
    print("| prior | curves | paper | curve |\n|---|---|---|---|")
    rows = [
        (name, {"samples_per_round": 5}, label)
        for label in KINDS
        for name in ("llama-70b", "gemma-9b")
    ]
    rows += [(name, {}, "logistic") for name in ("smollm2-135m", "gemma-9b")]
    for name, effort, label in rows:
        cells = []
        for method in ("paper", "curve"):
            prior = prior_of(name, method=method, **effort)
            off, responses = errors(KINDS[label], prior, latents)
            cells.append(f"{root_mean_square(off):.1f} ({np.mean(off):+.1f}), {responses:.0f}")
        print(f"| {name} | {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
