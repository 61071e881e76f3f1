"""The strength search: its evidence, its bookkeeping, and its error on simulated responses."""

import json
import math

import numpy as np
import pytest
from curves import KINDS, errors, prior_of, root_mean_square
from scipy.stats import truncnorm

from esr_eval.calibration.bisection import (
    CHECK_SAMPLES,
    MAX_EMPTY_ROUNDS,
    Bisection,
    Round,
    calibration_prior,
    probability_above,
)
from esr_eval.calibration.curve import CurveSearch
from esr_eval.calibration.methods import begin, responses_per_latent
from esr_eval.errors import EsrError
from esr_eval.subjects import CalibrationPrior, find_subject, subjects

PRIOR = CalibrationPrior(prior_mean=70, prior_std=40, lower=0, upper=200, rounds=10)


def simulate(
    prior: CalibrationPrior, samples: int, rng: np.random.Generator, spread: float = 1.4
) -> float:
    """Relative error of one search on a random falling curve with noisy judged scores.

    The scores are Beta distributed around the curve's value; a spread of 1.4 gives a standard
    deviation of 28 points near the target, that of the offline judge on steered answers.
    """
    low, high = (np.array([prior.lower, prior.upper]) - prior.prior_mean) / prior.prior_std
    truth = prior.prior_mean + prior.prior_std * truncnorm.rvs(low, high, random_state=rng)
    top, slope = rng.uniform(85, 98), rng.uniform(3, 10) / truth

    def mean(boost: float) -> float:
        at_target = math.log(top / prior.target - 1)
        return top / (1 + math.exp(min(slope * (boost - truth) + at_target, 50.0))) / 100

    search = Bisection(prior=prior)
    while not search.finished:
        m = mean(search.strength)
        search = search.observe(100 * rng.beta(spread * m + 1e-6, spread * (1 - m) + 1e-6, samples))
    return abs(search.strength - truth) / truth


@pytest.mark.parametrize("name", [name for name, one in subjects().items() if one.calibration])
def test_median_error_over_200_simulated_curves_is_within_ten_percent(name: str) -> None:
    prior = subjects()[name].calibration
    assert prior is not None
    rng = np.random.default_rng(2602)
    errors = [simulate(prior, prior.samples_per_round, rng) for _ in range(200)]
    assert np.median(errors) < 0.10


def test_more_samples_per_round_find_the_strength_better() -> None:
    rng = np.random.default_rng(7)
    few = np.median([simulate(PRIOR, 1, rng) for _ in range(100)])
    many = np.median([simulate(PRIOR, 8, rng) for _ in range(100)])
    assert many < few


def test_first_median_is_that_of_the_truncated_prior() -> None:
    low, high = (0 - 70) / 40, (200 - 70) / 40
    expected = truncnorm.median(low, high, loc=70, scale=40)
    assert Bisection(prior=PRIOR).strength == pytest.approx(expected, abs=0.1)


def test_one_update_moves_the_mass_that_the_evidence_says() -> None:
    before = Bisection(prior=PRIOR)
    after = before.observe([90.0, 70.0])
    above = after.posterior[after.grid > before.strength].sum()
    assert above == pytest.approx(probability_above([90.0, 70.0], 30), abs=2e-3)


def test_high_scores_raise_the_boost_and_low_scores_lower_it() -> None:
    start = Bisection(prior=PRIOR)
    assert start.observe([95.0]).strength > start.strength
    assert start.observe([2.0]).strength < start.strength


def test_evidence_is_the_beta_tail_of_the_protocol() -> None:
    # Beta(0.5 + 5 * 0.9, 0.5 + 5 * 0.1) = Beta(5, 1), whose distribution function is x ** 5.
    assert probability_above([90.0], 30) == pytest.approx(1 - 0.3**5)
    # Beta(1, 5): 1 - (1 - x) ** 5.
    assert probability_above([10.0], 30) == pytest.approx(0.7**5)


@pytest.mark.parametrize(("score", "end"), [(0.0, PRIOR.lower), (100.0, PRIOR.upper)])
def test_one_sided_answers_run_to_the_bound_and_stay_finite(score: float, end: float) -> None:
    prior = PRIOR.model_copy(update={"rounds": 200})
    search = Bisection(prior=prior)
    while not search.finished:
        search = search.observe([score] * 3)
        assert prior.lower <= search.strength <= prior.upper
        assert search.posterior.sum() == pytest.approx(1)
    assert search.strength == pytest.approx(end, abs=1)


def test_a_round_without_judgements_moves_nothing_and_is_not_counted() -> None:
    start = Bisection(prior=PRIOR)
    after = start.observe([], unscored=2)
    assert after.strength == start.strength
    assert (after.counted, after.empty, after.rounds[0].unscored) == (0, 1, 2)
    assert after.rounds[0].mean is None
    assert not after.failed


def test_search_gives_up_after_bounded_empty_rounds() -> None:
    search = Bisection(prior=PRIOR)
    for _ in range(MAX_EMPTY_ROUNDS):
        search = search.observe([], unscored=1)
    assert not search.failed
    assert search.observe([], unscored=1).failed
    # Enough evidence ends the search well, however many empty rounds lay between.
    for _ in range(PRIOR.rounds):
        search = search.observe([30.0])
    assert search.finished and not search.failed


def test_state_survives_json_exactly() -> None:
    search = Bisection(prior=PRIOR).observe([80.0, 12.5]).observe([], unscored=2).observe([31.0])
    restored = Bisection.model_validate(json.loads(json.dumps(search.to_json())))
    assert restored == search
    assert restored.strength == search.strength


def test_files_name_the_strength_of_a_round_as_they_always_did() -> None:
    tested = Round(strength=1.5, scores=(30.0,))
    assert tested.model_dump() == {"boost": 1.5, "scores": (30.0,), "unscored": 0}
    assert Round.model_validate(tested.model_dump()) == tested


def test_scores_outside_0_to_100_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        Round(strength=1.0, scores=(101.0,))
    with pytest.raises(ValueError, match="between 0 and 100"):
        Round(strength=1.0, scores=(math.nan,))


CURVE = PRIOR.model_copy(update={"method": "curve", "samples_per_round": 2})


@pytest.mark.parametrize(("name", "kind"), [("llama-70b", "logistic"), ("gemma-9b", "bimodal")])
def test_curve_takes_40_percent_of_the_responses_and_errs_less_than_bisection_on_as_many(
    name: str, kind: str
) -> None:
    prior = prior_of(name, samples_per_round=5)
    paper, all_responses = errors(KINDS[kind], prior, 60)
    few, same_responses = errors(KINDS[kind], prior.model_copy(update={"samples_per_round": 2}), 60)
    curve, responses = errors(KINDS[kind], prior.model_copy(update={"method": "curve"}), 60)
    assert (all_responses, same_responses) == (50, 20) and 19 < responses <= 20
    assert root_mean_square(curve) < root_mean_square(few)
    assert root_mean_square(curve) < 1.3 * root_mean_square(paper)


@pytest.mark.parametrize("kind", ["flat", "ramp", "prior too low", "prior too high"])
def test_curve_that_is_not_as_expected_still_leads_near_the_target(kind: str) -> None:
    off, _ = errors(KINDS[kind], prior_of("llama-70b", method="curve"), 20)
    assert root_mean_square(off) < 13 and abs(np.mean(off)) < 6


def test_curve_ends_before_its_last_response_where_the_score_is_known_well_enough() -> None:
    off, responses = errors(
        KINDS["little noise"], prior_of("llama-70b", method="curve", rounds=30), 5
    )
    assert 20 < responses < 60
    assert root_mean_square(off) < 6


def test_curve_tests_a_higher_strength_after_a_high_score() -> None:
    start = CurveSearch(prior=CURVE)
    high, low = start.observe([90.0]), start.observe([5.0])
    assert low.strength < start.strength < high.strength
    assert low.next_strength < start.next_strength < high.next_strength


def test_posterior_of_the_curve_narrows_to_where_scores_fall() -> None:
    search, widths = CurveSearch(prior=CURVE.model_copy(update={"rounds": 25})), []
    while not search.finished:
        widths.append(search.quantile(0.95) - search.quantile(0.05))
        search = search.observe([85.0 if search.next_strength < 50 else 20.0])
        assert CURVE.lower <= search.strength <= CURVE.upper
    assert widths[-1] < widths[0] / 2
    assert search.strength == pytest.approx(50, rel=0.3)


@pytest.mark.parametrize("score", [0.0, 100.0])
def test_one_sided_answers_leave_the_curve_finite_and_within_its_bounds(score: float) -> None:
    search = CurveSearch(prior=CURVE.model_copy(update={"rounds": 100}))
    while not search.finished:
        search = search.observe([score])
    assert CURVE.lower <= search.strength <= CURVE.upper
    assert np.isfinite(search.posterior).all()


def test_curve_gives_up_when_hardly_anything_is_judged() -> None:
    start = CurveSearch(prior=CURVE)
    search = start
    for _ in range(MAX_EMPTY_ROUNDS):
        search = search.observe([], unscored=1)
    assert search.next_strength == start.next_strength and not search.failed
    assert search.observe([], unscored=1).failed
    for _ in range(4):
        search = search.observe([50.0])
    assert not search.observe([], unscored=1).failed


def test_state_of_the_curve_survives_json_exactly() -> None:
    search = CurveSearch(prior=CURVE).observe([80.0]).observe([], unscored=1).observe([12.5])
    restored = CurveSearch.model_validate(json.loads(json.dumps(search.to_json())))
    assert restored == search
    assert (restored.next_strength, restored.strength) == (search.next_strength, search.strength)
    with pytest.raises(ValueError, match="method=paper"):
        Bisection.model_validate(search.to_json())


def test_each_method_has_its_search_and_number_of_responses() -> None:
    assert isinstance(begin(PRIOR), Bisection) and isinstance(begin(CURVE), CurveSearch)
    assert responses_per_latent(find_subject("llama-70b")) == 50 + CHECK_SAMPLES
    by_curve = {"method": "curve"}
    assert responses_per_latent(find_subject("llama-70b"), by_curve) == 20 + CHECK_SAMPLES
    assert responses_per_latent(find_subject("gemma-9b"), by_curve) == 4 + CHECK_SAMPLES


def test_curve_over_strengths_below_zero_is_refused() -> None:
    subject = find_subject("llama-8b")
    assert calibration_prior(subject, {"lower": -5}).lower == -5
    with pytest.raises(EsrError, match="method=paper"):
        calibration_prior(subject, {"lower": -5, "method": "curve"})
