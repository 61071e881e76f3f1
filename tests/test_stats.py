import math

import numpy as np
import pytest
from clustered import alike_propensities, propensities
from inspect_ai.scorer import SampleScore, Score, ci_wilson

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import TrialKey, shared_trials
from esr_eval.stats.comparisons import (
    bootstrap_intervals,
    compare_pairs,
    compare_unpaired,
    holm,
    mcnemar_tests,
    pooled_t_test,
    sign_flip_test,
)
from esr_eval.stats.means import (
    cliffs_delta,
    cohens_d,
    difference_of_means,
    difference_of_sides,
    independent_contrast,
    paired_contrast,
)
from esr_eval.stats.rates import clustered_wilson, intraclass_correlation, rate
from esr_eval.stats.recapture import all_hits, recapture

pytestmark = pytest.mark.filterwarnings(
    "error",
    # Streams of other tests that the collector finds while these run.
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

NAN = float("nan")
SETS = 1000


def per_trial(hits, trials):
    """Values and clusters of trials with those counts."""
    values = [float(i < k) for k, n in zip(hits, trials, strict=True) for i in range(n)]
    return values, np.repeat(np.arange(len(trials)), trials)


def coverage(low, high, truth):
    return np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high)))


# --- intervals of a rate ---


@pytest.mark.parametrize("truth", [0.01, 0.04, 0.08, 0.30])
@pytest.mark.parametrize(
    ("latents", "trials", "icc"), [(500, 5, 0.1), (500, 10, 0.2), (250, 10, 0.05), (250, 10, 0.2)]
)
def test_interval_covers_the_true_rate_of_clustered_trials(truth, latents, trials, icc):
    rng = np.random.default_rng(20)
    hits = rng.binomial(trials, propensities(rng, (SETS, latents), truth, icc))
    _, low, high = clustered_wilson(hits, trials)
    assert 0.93 <= coverage(low, high, truth) <= 0.97


@pytest.mark.parametrize("truth", [0.01, 0.04, 0.08, 0.30])
def test_interval_covers_when_latents_lost_trials(truth):
    rng = np.random.default_rng(21)
    trials = rng.integers(5, 11, (SETS, 250))
    hits = rng.binomial(trials, propensities(rng, (SETS, 250), truth, 0.1))
    _, low, high = clustered_wilson(hits, trials)
    assert 0.93 <= coverage(low, high, truth) <= 0.97


def test_few_hits_of_few_latents_make_the_interval_wide_not_wrong():
    rng = np.random.default_rng(22)
    hits = rng.binomial(10, propensities(rng, (SETS, 100), 0.01, 0.2))
    _, low, high = clustered_wilson(hits, 10)
    assert coverage(low, high, 0.01) >= 0.93


def test_plenty_of_hits_give_inspects_interval():
    rng = np.random.default_rng(23)
    hits = rng.binomial(10, propensities(rng, 500, 0.3, 0.1))
    values, clusters = per_trial(hits, [10] * 500)
    inspect = ci_wilson(cluster="latent")(
        [
            SampleScore(score=Score(value=value), sample_metadata={"latent": int(latent)})
            for value, latent in zip(values, clusters, strict=True)
        ]
    )
    found = rate(values, clusters).estimate
    assert found.low == pytest.approx(inspect["lower"], abs=1e-6)
    assert found.high == pytest.approx(inspect["upper"], abs=1e-6)


def test_one_cluster_has_the_wilson_interval_of_its_trials():
    found = rate([1.0] + [0.0] * 9, ["only"] * 10)
    assert (found.hits, found.trials, found.clusters) == (1, 10, 1)
    assert found.estimate.value == pytest.approx(0.1)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((0.01787621, 0.40415003))


def test_two_clusters_by_hand():
    # Residuals 0.5 and -0.5 of 4 trials at p = 5/8: variance (0.25 + 0.25) * 2 / 64 = 1/64, so
    # 15 trials, at most 8; t of 1 degree of freedom at 97.5 % is 12.7062.
    found = rate([1, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2]).estimate
    squared = 12.706204736**2
    centre = (5 / 8 + squared / 16) / (1 + squared / 8)
    half = math.sqrt(squared * 15 / 64 / 8 + squared**2 / 256) / (1 + squared / 8)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize(("value", "bounds"), [(0.0, (0.0, None)), (1.0, (None, 1.0))])
def test_all_or_none(value, bounds):
    found = rate([value] * 500, np.arange(500) // 5).estimate
    assert found.value == value
    assert found.low == bounds[0] or 0.97 < found.low < 1
    assert found.high == bounds[1] or 0 < found.high < 0.03


def test_every_cluster_alike_counts_the_trials_in_full():
    found = rate([0, 1] * 50, np.arange(100) // 2).estimate
    assert found.value == 0.5
    assert 0.3 < found.low < 0.4 < 0.6 < found.high < 0.7


def test_more_hits_give_higher_bounds_from_none_on():
    highs = []
    for count in range(8):
        hits = [1] * count + [0] * (100 - count)
        highs.append(float(clustered_wilson(hits, 10)[2]))
    assert highs == sorted(highs)


def test_undefined_trials_are_left_out_and_no_trial_is_none():
    found = rate([1.0, NAN, 0.0, NAN], [1, 1, 2, 3])
    assert (found.hits, found.trials, found.clusters) == (1, 2, 2)
    assert rate([NAN], [1]) is None
    assert rate([], []) is None
    with pytest.raises(EsrError, match="0 and 1"):
        rate([0.5], [1])
    with pytest.raises(ValueError, match="2 values but 1"):
        rate([0.0, 1.0], [1])


def test_intraclass_correlation():
    assert intraclass_correlation([1, 1, 0, 0], [1, 1, 2, 2]) == pytest.approx(1)
    # All four within-cluster ordered pairs differ: -1.
    assert intraclass_correlation([1, 0, 1, 0], [1, 1, 2, 2]) == pytest.approx(-1)
    assert intraclass_correlation([0, 0, 0], [1, 1, 2]) is None
    assert intraclass_correlation([0, 1, 0], [1, 2, 3]) is None
    rng = np.random.default_rng(24)
    hits = rng.binomial(10, propensities(rng, 20000, 0.08, 0.15))
    assert intraclass_correlation(*per_trial(hits, [10] * 20000)) == pytest.approx(0.15, abs=0.01)


# --- tests of no effect ---


def null_differences(rng, latents, trials, rate, icc, own_effect=0.0):
    """Pairs' unlike counts under no effect on the whole; `own_effect` differs between latents."""
    truth = propensities(rng, (SETS, latents), rate, icc)
    swing = own_effect * truth * rng.choice([-1, 1], (SETS, latents))
    first = rng.random((trials, SETS, latents)) < truth - swing
    second = rng.random((trials, SETS, latents)) < truth + swing
    return (first & ~second).sum(0), (second & ~first).sum(0)


@pytest.mark.parametrize(
    ("latents", "trials", "rate"), [(500, 5, 0.04), (100, 10, 0.08), (250, 5, 0.3)]
)
def test_no_effect_is_rejected_as_often_as_it_should(latents, trials, rate):
    rng = np.random.default_rng(30)
    lost, gained = null_differences(rng, latents, trials, rate, 0.15)
    clustered = [sign_flip_test(one) for one in gained - lost]
    assert 0.03 <= np.mean(np.array(clustered) < 0.05) <= 0.07
    mid_p = [mcnemar_tests(*counts)[1] for counts in zip(lost.sum(1), gained.sum(1), strict=True)]
    assert 0.03 <= np.mean(np.array(mid_p) < 0.05) <= 0.07


def test_only_the_clustered_test_holds_when_latents_respond_in_opposite_ways():
    rng = np.random.default_rng(31)
    lost, gained = null_differences(rng, 100, 10, 0.3, 0.15, own_effect=0.9)
    clustered = [sign_flip_test(one) for one in gained - lost]
    assert 0.03 <= np.mean(np.array(clustered) < 0.05) <= 0.07
    mid_p = [mcnemar_tests(*counts)[1] for counts in zip(lost.sum(1), gained.sum(1), strict=True)]
    assert np.mean(np.array(mid_p) < 0.05) > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_no_effect_on_unpaired_trials(shared):
    rng = np.random.default_rng(32)
    truth = propensities(rng, (SETS, 400), 0.06, 0.15)
    trials = np.full((2, 400), 5.0)
    if not shared:
        trials[0, :200] = trials[1, 200:] = 0
    first, second = (rng.binomial(n.astype(int), truth) for n in trials)
    found = [pooled_t_test(a, trials[0], b, trials[1]) for a, b in zip(first, second, strict=True)]
    assert 0.03 <= np.mean(np.array(found) < 0.05) <= 0.07


def test_sign_flip_is_the_mid_p_mcnemar_test_when_clusters_have_one_pair():
    totals = [1] * 9 + [-1] * 3 + [0] * 50
    assert sign_flip_test(totals) == pytest.approx(mcnemar_tests(3, 9)[1])


def test_sign_flip_by_hand():
    # Totals 3 and 1: sums 4, 2, -2, -4, each 1/4; of 4: half of two.
    assert sign_flip_test([3, 1]) == pytest.approx(0.25)
    # Of 2: beyond are two of four, at it half of two.
    assert sign_flip_test([3, -1]) == pytest.approx(0.75)
    assert sign_flip_test([2, -2]) == 1.0
    assert sign_flip_test([0, 0]) == 1.0
    assert sign_flip_test([]) == 1.0
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip_test([0.5])


def test_mcnemar_by_hand():
    # Binomial(4, 1/2): P(0) = 1/16.
    assert mcnemar_tests(0, 4) == pytest.approx((2 / 16, 1 / 16))
    assert mcnemar_tests(0, 0) == (1.0, 1.0)
    assert mcnemar_tests(5, 5) == pytest.approx((1.0, 1.0))


def test_holm_within_families():
    found = holm({"a": [0.01, 0.04, 0.03, None], "b": [0.04], "none": [], "untested": [None]})
    assert found["a"] == pytest.approx([0.03, 0.06, 0.06, None])
    assert found["b"] == pytest.approx([0.04])
    assert found["none"] == []
    assert found["untested"] == [None]


# --- comparisons ---


@pytest.mark.parametrize(
    ("latents", "trials", "rates"), [(100, 10, (0.08, 0.055)), (200, 5, (0.08, 0.03))]
)
def test_bootstrap_covers_difference_and_ratio(latents, trials, rates):
    rng = np.random.default_rng(40)
    before, after = alike_propensities(rng, (SETS, latents), rates, 0.15, 0.9)
    hits, hits_after = rng.binomial(trials, before), rng.binomial(trials, after)
    n = np.full(latents, float(trials))
    found = [
        bootstrap_intervals(a, n, b, n, 0.95, resamples=499)
        for a, b in zip(hits.astype(float), hits_after.astype(float), strict=True)
    ]
    for index, truth in enumerate((rates[1] - rates[0], rates[1] / rates[0])):
        low, high = zip(*((one[index].low, one[index].high) for one in found), strict=True)
        assert 0.93 <= coverage(low, high, truth) <= 0.97


def test_a_planted_effect_is_found():
    rng = np.random.default_rng(41)
    before, after = alike_propensities(rng, 300, (0.3, 0.15), 0.1)
    trials = [10] * 300
    first, latents = per_trial(rng.binomial(10, before), trials)
    second, _ = per_trial(rng.binomial(10, after), trials)
    found = compare_pairs(first, second, latents)
    assert found.p_value < 1e-6
    assert found.difference.low < -0.15 < found.difference.high < 0
    assert found.ratio.low < 0.5 < found.ratio.high < 1
    assert found.first.trials == found.second.trials == 3000
    assert found.only_second - found.only_first == found.second.hits - found.first.hits
    assert compare_pairs(first, second, latents) == found
    unlike = compare_unpaired((first, latents), (second, latents + 1000))
    assert unlike.p_value < 1e-6
    assert unlike.difference.value == found.difference.value
    assert unlike.difference.high - unlike.difference.low > (
        found.difference.high - found.difference.low
    )


def test_nothing_happened_in_either_condition():
    found = compare_pairs([0] * 20, [0] * 20, np.arange(20) // 2)
    assert found.p_value == found.mcnemar == found.mcnemar_mid_p == 1
    assert (found.difference.value, found.difference.low) == (0, None)
    assert found.ratio is None
    found = compare_unpaired(([0] * 4, [1, 1, 2, 2]), ([0] * 4, [3, 3, 4, 4]))
    assert found.p_value == 1
    assert found.ratio is None


def test_all_in_one_condition_and_none_in_the_other():
    ones, zeros, latents = [1.0] * 20, [0.0] * 20, np.arange(20) // 2
    found = compare_pairs(ones, zeros, latents)
    assert found.difference.value == -1
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == (0, None, None)
    assert found.p_value < 0.01
    assert compare_pairs(zeros, ones, latents).ratio is None


def test_a_single_latent_has_no_interval_of_the_difference():
    found = compare_pairs([1, 0, 0], [1, 1, 0], [7, 7, 7])
    assert found.p_value is None
    assert (found.difference.value, found.difference.low) == (pytest.approx(1 / 3), None)
    assert (found.ratio.value, found.ratio.low) == (pytest.approx(2), None)
    assert (found.only_first, found.only_second) == (0, 1)


def test_no_pairs():
    assert compare_pairs([], [], []) is None
    assert compare_pairs([1.0], [NAN], [1]) is None
    assert compare_unpaired(([], []), ([1.0], [1])) is None
    assert compare_unpaired(([1.0], [1]), ([NAN], [1])) is None


def test_few_unlike_latents():
    """Resamples that miss a whole condition do no harm."""
    found = compare_unpaired(([1, 0, 1, 0], [1, 1, 2, 2]), ([0, 0, 1, 0], [3, 3, 4, 4]))
    assert found.difference.low <= found.difference.value <= found.difference.high
    assert found.ratio.high == math.inf


def test_trials_pair_by_latent_topic_seed_and_epoch():
    def key(latent, topic="t", seed=1, epoch=1):
        return TrialKey(latent, topic, seed, epoch)

    first = {key(2): 1.0, key(1): 0.0, key(1, seed=2): 1.0, key(1, "u"): NAN, key(3): 1.0}
    second = {key(1): 1.0, key(2): 0.0, key(1, "u"): 1.0, key(1, seed=2, epoch=2): 0.0}
    before, after, latents = shared_trials(first, second)
    assert before.tolist() == [0, 1]
    assert after.tolist() == [1, 0]
    assert latents.tolist() == [1, 2]
    assert [len(part) for part in shared_trials(first, {})] == [0, 0, 0]


# --- numbers ---


def test_effect_sizes_by_hand():
    # Both variances 1, means 2 and 4.
    assert cohens_d([1, 2, 3], [3, 4, 5]) == pytest.approx(2)
    # Of nine comparisons: 8 above, none below, one tie.
    assert cliffs_delta([1, 2, 3], [3, 4, 5]) == pytest.approx(8 / 9)
    assert cliffs_delta([1], [1]) == 0
    assert cliffs_delta([3, 3], [1]) == -1
    assert cohens_d([1], [2, 3]) is None
    assert cohens_d([1, 1], [2, 2]) is None
    assert cohens_d([1, 1], [1, 1]) == 0
    with pytest.raises(ValueError, match="numbers in both"):
        cliffs_delta([], [1])


def test_paired_contrast():
    rng = np.random.default_rng(50)
    before = rng.normal(size=200)
    found = paired_contrast([*before, NAN], [*(before + rng.normal(0.5, 0.5, 200)), 3.0])
    assert found.n_first == found.n_second == 200
    assert found.t_p < 1e-9
    assert found.rank_p < 1e-9
    assert 0.2 < found.cohens_d < 0.8
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_contrast([1.0], [1.0, 2.0])


def test_no_difference_is_rejected_as_often_as_it_should():
    rng = np.random.default_rng(51)
    found = [paired_contrast(*rng.exponential(size=(2, 40))) for _ in range(SETS)]
    found += [independent_contrast(*rng.exponential(size=(2, 40))) for _ in range(SETS)]
    assert 0.03 <= np.mean([one.t_p < 0.05 for one in found]) <= 0.07
    assert 0.03 <= np.mean([one.rank_p < 0.05 for one in found]) <= 0.07


def test_degenerate_contrasts():
    same = paired_contrast([1.0, 2.0], [1.0, 2.0])
    assert same.t_p == same.rank_p == 1
    assert same.cohens_d == same.cliffs_delta == 0
    shifted = paired_contrast([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert shifted.t_p is None
    assert shifted.rank_p == pytest.approx(0.25)
    one = paired_contrast([1.0], [2.0])
    assert (one.t_p, one.rank_p, one.cohens_d, one.cliffs_delta) == (None, None, None, 1)
    assert paired_contrast([NAN], [1.0]) is None
    zeros = independent_contrast([0.0] * 5, [0.0] * 4)
    assert zeros.t_p == zeros.rank_p == 1
    assert zeros.cliffs_delta == 0
    apart = independent_contrast([0.0] * 5, [1.0] * 4)
    assert (apart.t_p, apart.cohens_d, apart.cliffs_delta) == (None, None, 1)
    assert apart.rank_p < 0.05
    assert independent_contrast([], [1.0]) is None
    assert independent_contrast([1.0], [2.0, 3.0]).t_p is None


# --- all hits, from two detectors that each miss some ---


def found_by_two(rng, latents, rate, icc, first, second, sets=SETS, trials=5):
    """Hits of each, and of both, by latent; the two miss independently."""
    hits = rng.binomial(trials, propensities(rng, (sets, latents), rate, icc))
    both = rng.binomial(hits, first * second)
    rest = hits - both
    only_first = rng.binomial(rest, first * (1 - second) / (1 - first * second))
    only_second = rng.binomial(rest - only_first, second)
    return both + only_first, both + only_second, both


@pytest.mark.parametrize("rate", [0.04, 0.08, 0.25])
@pytest.mark.parametrize("latents", [100, 500])
@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.5, 0.9), (0.9, 0.9)])
@pytest.mark.parametrize("icc", [0.05, 0.2])
def test_all_hits_of_two_imperfect_detectors_are_covered(rate, latents, first, second, icc):
    rng = np.random.default_rng(31)
    counts = found_by_two(rng, latents, rate, icc, first, second, sets=2000)
    value, low, high = recapture(*counts, 5)
    known = ~np.isnan(low)
    assert known.mean() > 0.98
    assert 0.93 <= coverage(low[known], high[known], rate) <= 0.97
    assert np.nanmean(value) == pytest.approx(rate, rel=0.03)
    # What one of them finds is less than there is.
    assert counts[0].mean() / 5 == pytest.approx(first * rate, rel=0.05)


def test_detectors_that_miss_the_same_hits_make_the_estimate_too_low():
    rng = np.random.default_rng(32)
    hits = rng.binomial(5, propensities(rng, (SETS, 250), 0.2, 0.1))
    # Half are easy and found by both with 90 %, the others with 30 %.
    easy = rng.binomial(hits, 0.5)
    parts = []
    for count, chance in ((easy, 0.9), (hits - easy, 0.3)):
        both = rng.binomial(count, chance**2)
        rest = count - both
        first = rng.binomial(rest, chance * (1 - chance) / (1 - chance**2))
        parts.append((both + first, both + rng.binomial(rest - first, chance), both))
    value, _, high = recapture(*(x + y for x, y in zip(*parts, strict=True)), 5)
    assert value.mean() < 0.17
    assert np.mean(high < 0.2) > 0.5


def test_all_hits_by_hand():
    first = [1, 1, 1, 0, 0, 0, 0, 0, 0, NAN]
    second = [0, 1, 1, 1, 1, 0, 0, 0, 0, 1]
    both = [0, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    latents = [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    found = all_hits(first, second, both, latents)
    assert found.value == pytest.approx(((3 + 1) * (4 + 1) / (2 + 1) - 1) / 9)
    assert found.low < found.value < found.high <= 1
    assert found.value >= 5 / 9


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (([1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 2, 3]), None),
        (([], [], [], []), None),
        (([NAN], [1], [1], [1]), None),
        (([0, 0], [0, 0], [0, 0], [1, 2]), None),
    ],
)
def test_without_a_shared_hit_nothing_is_known_of_what_both_missed(cells, expected):
    assert all_hits(*cells) is expected


def test_one_cluster_or_clusters_all_alike_give_no_interval():
    alone = all_hits([1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [7, 7, 7, 7])
    alike = all_hits([1, 0] * 3, [1, 0] * 3, [1, 0] * 3, [1, 1, 2, 2, 3, 3])
    assert alone.low is alone.high is alike.low is alike.high is None
    assert alike.value == pytest.approx(0.5)


def test_detectors_that_find_everything_have_the_rate_and_nearly_its_interval():
    rng = np.random.default_rng(33)
    hits = rng.binomial(5, propensities(rng, 250, 0.2, 0.1))
    value, low, high = recapture(hits, hits, hits, 5)
    point, lower, upper = clustered_wilson(hits, 5)
    assert value == pytest.approx(point)
    assert [float(low), float(high)] == pytest.approx([float(lower), float(upper)], rel=0.03)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compare", [difference_of_sides, difference_of_means])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": [1.0]}, {"b": [3.0]}),
        ({"a": [1.0]}, {"b": [2.0], "c": [4.0]}),
        ({"a": [0.0, 2.0]}, {"b": [3.0, 3.0]}),
    ],
)
def test_of_one_cluster_on_a_side_a_difference_has_a_size_and_nothing_else(compare, first, second):
    sides = [
        (np.concatenate(list(side.values())), [name for name in side for _ in side[name]])
        for side in (first, second)
    ]
    for one, other, sign in ((0, 1, 1), (1, 0, -1)):
        found = compare(*sides[one], *sides[other])
        assert found.value == sign * 2
        assert (found.low, found.high, found.p_value, found.clusters) == (None, None, None, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shared", [True, False])
def test_sides_without_any_spread_have_no_interval(shared):
    names = [f"latent {n}" for n in range(7)]
    others = names if shared else [f"other {name}" for name in names]
    found = difference_of_sides(np.full(7, 0.1), names, np.full(7, 0.7), others)
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.p_value) == (None, None)
