"""Signal detection over clustered yes/no answers: sensitivity, bias, and what a shift explains.

Every interval is put together from those of its rates, each of which respects the clustering by
concept (`stats.rates`), by squaring and adding how far each bound moves the result (Newcombe 1998,
"Interval estimation for the difference between independent proportions"; Zou & Donner 2008, MOVER).
The rates count as independent. Those of one concept go up and down together, as a rule, and the
results are differences of them: so the intervals are rather too wide than too narrow.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from scipy.stats import norm

from esr_eval.stats.rates import Estimate, Rate, rate


@dataclass(frozen=True)
class Detection:
    """What answers with and without an injection say together; None where it is not defined.

    Attributes:
        hits: Share that claims a thought under injection.
        alarms: The same without injection.
        affirmed: Share that says yes, under injection, to unrelated questions whose answer is no.
        affirmed_control: The same without injection.
        d_prime: Sensitivity, z(hits) - z(alarms).
        bias: Criterion c, -(z(hits) + z(alarms)) / 2: above 0 it tends to say no.
        shift: What the injection does to the unrelated answers, in units of d'.
        explained: The hits that one would see were a claim no more than such a yes.
        corrected: Hits beyond those.
    """

    hits: Rate | None
    alarms: Rate | None
    affirmed: Rate | None
    affirmed_control: Rate | None
    d_prime: Estimate | None
    bias: Estimate | None
    shift: Estimate | None
    explained: Estimate | None
    corrected: Estimate | None


def detection(
    hits: Sequence[float],
    alarms: Sequence[float],
    affirmed: Sequence[float],
    affirmed_control: Sequence[float],
    concepts: Sequence[Hashable],
) -> Detection:
    """Detection from every answer's numbers of 0 or 1.

    Args:
        hits: See `Detection`; NaN for answers of the other kinds.
        alarms: Likewise.
        affirmed: Likewise.
        affirmed_control: Likewise.
        concepts: What each answer's concept is.
    """
    names = [str(one) for one in concepts]
    h, f, y, n = (rate(values, names) for values in (hits, alarms, affirmed, affirmed_control))
    d_prime = bias = shift = explained = corrected = None
    if h and f:
        pair = (_smoothed(h), _smoothed(f))
        d_prime = combined(lambda a, b: _z(a) - _z(b), pair)
        bias = combined(lambda a, b: -(_z(a) + _z(b)) / 2, pair)
    if y and n:
        shift = combined(lambda a, b: _z(a) - _z(b), (_smoothed(y), _smoothed(n)))
    if f and y and n:
        explained = combined(expected, (f.estimate, y.estimate, n.estimate))
    if h and f and y and n:
        corrected = combined(
            lambda a, b, c, d: a - expected(b, c, d),
            (h.estimate, f.estimate, y.estimate, n.estimate),
        )
    return Detection(h, f, y, n, d_prime, bias, shift, explained, corrected)


def expected(alarms: float, affirmed: float, affirmed_control: float) -> float:
    """The hits that a mere shift towards yes (or no) would make.

    An injection that turns a share s of the answers no into yes turns as many of the answers about
    thoughts, whatever they are about (Abbott 1925, of mortality beyond that of untreated insects).

    Args:
        alarms: Claims without injection.
        affirmed: Yes to unrelated questions under injection.
        affirmed_control: Yes to them without.
    """
    if affirmed < affirmed_control:
        return alarms * affirmed / affirmed_control
    turned = (affirmed - affirmed_control) / (1 - affirmed_control) if affirmed_control < 1 else 0.0
    return alarms + (1 - alarms) * turned


def combined(of: Callable[..., float], parts: Sequence[Estimate]) -> Estimate:
    """A number made of others, with its interval.

    Args:
        of: Makes it; going up or down with each part.
        parts: With their intervals; where one has none, the result has none.
    """
    values = [part.value for part in parts]
    point = of(*values)
    below = above = 0.0
    for at, part in enumerate(parts):
        if part.low is None or part.high is None:
            return Estimate(point)
        moved = [
            of(*(bound if other == at else value for other, value in enumerate(values))) - point
            for bound in (part.low, part.high)
        ]
        below += min(0.0, *moved) ** 2
        above += max(0.0, *moved) ** 2
    return Estimate(point, point - math.sqrt(below), point + math.sqrt(above))


def _smoothed(found: Rate) -> Estimate:
    """The rate as if half a hit and half a miss had been there besides (Hautus 1995).

    Of none and of all z knows no number; a bound there is taken a quarter of an answer inside.
    """
    hits, trials = found.hits, found.trials
    value, edge = (hits + 0.5) / (trials + 1), 0.25 / (trials + 1)
    low, high = found.estimate.low, found.estimate.high
    assert low is not None and high is not None
    return Estimate(
        value,
        min(value, max(low, edge)),
        max(value, min(high, 1 - edge)),
    )


def _z(share: float) -> float:
    return float(norm.ppf(share))
