"""Statistics over regions, on traces whose truth was planted."""

import gc
import math
from dataclasses import replace

import numpy as np
import pytest

from esr_eval.data.trial import Trial
from esr_eval.episodes.regions import (
    NO_RESTART,
    UNSTEERED,
    halves,
    latent_effects,
    region_statistics,
    region_values,
    within,
)
from esr_eval.episodes.traces import Region, Trace, measured, read_regions, token_kinds
from esr_eval.errors import EsrError
from esr_eval.report.activations import what_is_tracked
from esr_eval.stats.means import difference_of_means, mean_difference

pytestmark = pytest.mark.filterwarnings(
    "error",
    # Streams of other tests that the collector finds while these run.
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

TEXT = "a" * 8 + "b" * 4 + "c" * 8
REGIONS = [Region("off_topic", 0, 8), Region("correction", 8, 12), Region("on_topic", 12, 20)]
OFFSETS = np.array([(i, i + 1) for i in range(20)])


@pytest.fixture
def quick_collection():
    """statsmodels collects garbage in every correction; what is imported need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def trace(detectors, number=0, *, latent=None, steered=True, regions=REGIONS, **sets):
    """A trace of 20 one-letter tokens: 8 off-topic, 4 of correction, 8 on-topic."""
    trial = Trial(
        condition="steered" if steered else "unsteered",
        latent=number if latent is None else latent,
        label="fire",
        strength=4.0 if steered else 0.0,
        topic=f"topic {number % 38}",
        seed=number,
    )
    arrays = {"detectors": np.asarray(detectors, dtype=np.float32)} | sets
    return Trace(f"{number}-{steered}", trial, TEXT, arrays, OFFSETS, regions, multi_attempt=True)


def episodes(rng, count, off=0.0, correction=0.0, per_latent=1, alike=0.0, latents=2):
    """Episodes whose regions differ from on-topic text by so much, in SDs of their means."""
    made = []
    for number in range(count):
        if number % per_latent == 0:
            shared = rng.normal(0, alike, 2)
        shift = np.repeat([off + shared[0], correction + shared[1], 0.0], [8, 4, 8])
        own = np.repeat(rng.normal(0, 1, (latents, 3)), [8, 4, 8], axis=1)
        values = 5 + own * math.sqrt(latents) + shift
        made.append(trace(values, number, latent=number // per_latent))
    return made


def unsteered(rng, count, latents=2):
    levels = 5 + rng.normal(0, 1, (count, latents, 1)) * math.sqrt(latents)
    return [
        trace(np.repeat(values, 20, axis=1), number, steered=False, regions=None)
        for number, values in enumerate(levels)
    ]


def contrast(statistics, first, second, latents="detectors"):
    [found] = [
        one
        for one in statistics.contrasts
        if (one.latents, one.first, one.second) == (latents, first, second)
    ]
    return found


# --- tokens and their regions ---


def test_tokens_belong_to_the_region_of_their_first_visible_character():
    text = "Fire! Wait, 火の🔥 mix."
    cut, back = text.index("Wait"), text.index("火")
    regions = [
        Region("off_topic", 0, cut),
        Region("correction", cut, back),
        Region("on_topic", back, len(text)),
    ]
    pieces = ["Fire", "!", " Wait", ",", " 火", "の", "🔥", "🔥", "🔥", " mix", "."]
    offsets, at = [], 0
    for index, piece in enumerate(pieces):
        # Three byte tokens of the one emoji, each with the whole character's offsets.
        at = offsets[-1][0] if index and pieces[index - 1] == piece else at
        offsets.append((at, at + len(piece)))
        at += len(piece)
    kinds = token_kinds(text, np.array(offsets), regions).tolist()
    assert "".join(dict.fromkeys(pieces)) == text
    assert kinds == ["off_topic"] * 2 + ["correction"] * 2 + ["on_topic"] * 7


def test_tokens_outside_all_regions_and_beyond_the_text_have_none():
    offsets = np.array([(0, 2), (2, 3), (3, 4), (4, 4)])
    kinds = token_kinds("ab\n ", offsets, [Region("on_topic", 0, 2)]).tolist()
    assert kinds == ["on_topic", "", "", ""]


def test_on_topic_text_before_the_drift_stands_apart():
    regions = [
        Region("on_topic", 0, 2),
        Region("off_topic", 2, 4),
        Region("on_topic", 4, 6),
        Region("off_topic", 6, 8),
    ]
    kinds = [region.kind for region in measured(regions)]
    assert kinds == ["on_topic_before", "off_topic", "on_topic", "off_topic"]
    assert [r.kind for r in measured([Region("on_topic", 0, 9)])] == ["on_topic_before"]


@pytest.mark.parametrize(
    "found", [None, 3, [{"kind": "off_topic"}], [{"kind": "off_topic", "start": "x", "end": 2}]]
)
def test_regions_that_are_none_are_told(found):
    with pytest.raises(EsrError, match="score it again"):
        read_regions(found)
    with pytest.raises(EsrError, match="unknown kind: poem"):
        read_regions([{"kind": "poem", "start": 0, "end": 1}])


# --- means ---


def test_means_are_those_of_the_tokens_in_each_region():
    values = np.arange(40.0).reshape(2, 20)
    one = trace(values)
    [row] = region_values([one], "detectors", "correction")
    assert row.tolist() == pytest.approx([values[0, 8:12].mean(), values[1, 8:12].mean()])
    statistics = region_statistics([one, trace(values + 2, 1), trace(values, 2, steered=False)])
    found = {mean.region: mean for mean in statistics.means}
    assert found["off_topic"].mean == pytest.approx(values[:, :8].mean() + 1)
    assert (found["off_topic"].episodes, found["off_topic"].tokens) == (2, 16)
    assert found[UNSTEERED].mean == pytest.approx(values.mean())
    assert (found[UNSTEERED].episodes, found[UNSTEERED].tokens) == (1, 20)
    # Nobody began on-topic: said as two episodes without, not as a 0.
    assert math.isnan(found["on_topic_before"].mean)
    assert (found["on_topic_before"].episodes, found["on_topic_before"].without) == (0, 2)


def test_episodes_without_a_region_or_a_verdict_are_counted_and_leave_the_pairs():
    rng = np.random.default_rng(1)
    made = episodes(rng, 6)
    short = trace(np.ones((2, 20)), 6, regions=[Region("off_topic", 0, 20)])
    unjudged = trace(np.ones((2, 20)), 7, regions=None)
    statistics = region_statistics([*made, short, unjudged])
    assert (statistics.episodes, statistics.baseline, statistics.unjudged) == (8, 0, 1)
    off, on = (
        next(mean for mean in statistics.means if mean.region == region)
        for region in ("off_topic", "on_topic")
    )
    assert (off.episodes, off.without) == (7, 1)
    assert (on.episodes, on.without) == (6, 2)
    assert contrast(statistics, "on_topic", "off_topic").contrast.n_first == 6
    against = contrast(statistics, UNSTEERED, "off_topic")
    assert (against.contrast, against.difference, against.rank_p) == (None, None, None)


def test_an_unsteered_answer_is_one_region():
    one = trace(np.ones((1, 20)), steered=False)
    assert within(one, UNSTEERED).all() and not within(one, "off_topic").any()
    assert not within(trace(np.ones((1, 20))), UNSTEERED).any()


def test_no_traces_give_no_numbers():
    statistics = region_statistics([])
    assert (statistics.episodes, statistics.means, statistics.contrasts) == (0, [], [])
    assert latent_effects([], [1, 2]) == []


# --- planted effects ---


def test_detectors_that_rise_off_topic_are_found_with_their_size():
    rng = np.random.default_rng(2)
    statistics = region_statistics(episodes(rng, 500, off=0.85) + unsteered(rng, 300))
    for first in ("on_topic", UNSTEERED):
        found = contrast(statistics, first, "off_topic")
        assert found.paired == (first == "on_topic")
        assert found.contrast.cohens_d == pytest.approx(0.85, abs=0.2)
        assert found.contrast.cliffs_delta > 0.2
        assert found.difference.low < 0.85 < found.difference.high
        assert max(found.rank_p, found.t_p, found.clustered_p) < 0.01
    falls = contrast(statistics, "off_topic", "correction")
    assert falls.contrast.cohens_d < -0.5 and falls.difference.high < 0
    calm = contrast(statistics, UNSTEERED, "on_topic")
    assert calm.difference.low < 0 < calm.difference.high


def test_only_the_set_with_the_effect_shows_it():
    rng = np.random.default_rng(3)
    made = [
        Trace(
            one.sample_id,
            one.trial,
            one.response,
            one.activations | {"backtracking": rng.normal(1, 1, (16, 20)).astype(np.float32)},
            one.offsets,
            one.regions,
            one.multi_attempt,
        )
        for one in episodes(rng, 100, off=1.0)
    ]
    statistics = region_statistics(made)
    assert contrast(statistics, "on_topic", "off_topic").rank_p < 0.001
    assert contrast(statistics, "on_topic", "off_topic", "backtracking").rank_p > 0.05


def test_latents_are_ranked_and_halved_by_the_sign_of_their_effect():
    rng = np.random.default_rng(4)
    planted = np.array([-0.8, 0.0, 0.9, 0.4])
    made = []
    for number in range(400):
        values = np.repeat(rng.normal(5, 1, (4, 3)), [8, 4, 8], axis=1)
        values[:, :8] += planted[:, None]
        made.append(trace(values, number))
    effects = latent_effects(made, [10, 11, 12, 13])
    assert [one.latent for one in effects] == [12, 13, 11, 10]
    for one in effects:
        assert one.d_on_topic == pytest.approx(planted[one.latent - 10], abs=0.2)
        assert (one.d_unsteered, one.p_unsteered) == (None, None)
        assert (one.p_on_topic < 0.01) == (one.latent != 11)
    positive, negative = halves(effects)
    assert {12, 13} <= set(positive) and 10 in negative


def test_without_pairs_latents_are_ranked_against_unsteered_answers():
    rng = np.random.default_rng(5)
    drift = [Region("off_topic", 0, 20)]
    made = [trace(rng.normal([[0], [2]], 1, (2, 20)), n, regions=drift) for n in range(30)]
    effects = latent_effects(made + unsteered(rng, 30), [7, 8])
    assert [one.latent for one in effects] == [8, 7]
    assert all(one.d_on_topic is None and one.d == one.d_unsteered for one in effects)


# --- answers without a restart, beside those with one ---


def controls(rng, count, off, latents=2, per_latent=1):
    """Steered answers without a restart whose off-topic text lies so far above on-topic text."""
    made = episodes(rng, count, off=off, latents=latents, per_latent=per_latent)
    return [replace(one, sample_id=f"{one.sample_id}-control", control=True) for one in made]


def test_controls_are_compared_by_their_off_topic_text_alone():
    values = np.arange(40.0).reshape(2, 20)
    own = [trace(values + 3 * n, n) for n in range(3)]
    beside = [replace(trace(values + 10 + n, n), control=True) for n in range(3)]
    plain = [trace(values + 5 * n, n, steered=False, regions=None) for n in range(3)]
    statistics = region_statistics([*own, *beside, *plain])
    assert (statistics.episodes, statistics.controls, statistics.baseline) == (3, 3, 3)
    found = {mean.region: mean for mean in statistics.means}
    assert found["off_topic"].mean == pytest.approx(values[:, :8].mean() + 3)
    assert found[NO_RESTART].mean == pytest.approx(values[:, :8].mean() + 11)
    assert (found[NO_RESTART].episodes, found[NO_RESTART].tokens) == (3, 24)
    assert found["on_topic"].episodes == 3, "of the answers with a restart alone"
    against = contrast(statistics, NO_RESTART, "off_topic")
    assert not against.paired and against.contrast.n_first == against.contrast.n_second == 3
    assert against.difference.value == pytest.approx(3 - 11)
    assert against.difference.clusters == 3
    # Latents are ranked by the answers with a restart.
    [one, _] = sorted(latent_effects([*own, *beside, *plain], [7, 8]), key=lambda one: one.latent)
    assert one.off_topic == pytest.approx(values[0, :8].mean() + 3)


def test_without_controls_a_log_has_the_rows_it_always_had():
    rng = np.random.default_rng(20)
    statistics = region_statistics(episodes(rng, 20, off=1.0) + unsteered(rng, 20))
    assert NO_RESTART not in {mean.region for mean in statistics.means}
    assert len(statistics.contrasts) == 4
    assert what_is_tracked(statistics) is None


def test_detectors_of_off_topic_text_and_of_correction_are_told_apart():
    rng = np.random.default_rng(21)
    own, plain = episodes(rng, 120, off=2.0, per_latent=4), unsteered(rng, 60)
    text = region_statistics(own + controls(rng, 120, 2.0, per_latent=4) + plain)
    said = what_is_tracked(text)
    assert "they track off-topic text, not its correction" in said and "as active" in said
    means = {one.region: one.mean for one in text.means}
    for region in ("off_topic", NO_RESTART, UNSTEERED):
        assert f"{means[region]:.3g} (" in said
    correction = region_statistics(own + controls(rng, 120, 0.0, per_latent=4) + plain)
    assert "may have to do with correction" in what_is_tracked(correction)
    assert contrast(correction, NO_RESTART, "off_topic").difference.low > 0
    more = region_statistics(own + controls(rng, 120, 4.0, per_latent=4) + plain)
    assert "even more active" in what_is_tracked(more)


def test_a_handful_of_answers_leaves_open_what_is_tracked():
    own = [trace(np.full((2, 20), value), n) for n, value in enumerate((1.0, 9.0, 2.0))]
    beside = [
        replace(trace(np.full((2, 20), value), n), control=True)
        for n, value in enumerate((8.0, 1.0, 2.0))
    ]
    said = what_is_tracked(region_statistics(own + beside))
    assert "stays open" in said and "they track off-topic text, not" not in said
    silent = [replace(one, regions=None) for one in beside]
    assert "no off-topic text on one of the sides" in what_is_tracked(
        region_statistics(own + silent)
    )


# --- null effects ---


def test_a_null_stays_null(quick_collection):
    rng = np.random.default_rng(6)
    kinds = ("rank_p", "t_p", "clustered")
    rejected = {(pair, kind): 0 for pair in ("paired", "independent") for kind in kinds}
    runs = 500
    for _ in range(runs):
        statistics = region_statistics(episodes(rng, 30, latents=1) + unsteered(rng, 30, latents=1))
        for pair, first in (("paired", "on_topic"), ("independent", UNSTEERED)):
            found = contrast(statistics, first, "off_topic")
            rejected[pair, "rank_p"] += found.contrast.rank_p < 0.05
            rejected[pair, "t_p"] += found.contrast.t_p < 0.05
            rejected[pair, "clustered"] += found.difference.p_value < 0.05
    for which, count in rejected.items():
        assert 0.03 <= count / runs <= 0.08, (which, count / runs)


def test_holm_keeps_false_alarms_over_all_contrasts_at_five_percent(quick_collection):
    rng = np.random.default_rng(7)
    runs = alarms = 0
    for _ in range(300):
        statistics = region_statistics(episodes(rng, 20, latents=1) + unsteered(rng, 20, latents=1))
        alarms += min(one.rank_p for one in statistics.contrasts) < 0.05
        runs += 1
    assert alarms / runs <= 0.08


def test_the_clustered_test_holds_where_episodes_of_a_latent_are_alike(quick_collection):
    rng = np.random.default_rng(8)
    episode_wise = clustered = covered = 0
    runs = 300
    for _ in range(runs):
        made = episodes(rng, 60, per_latent=5, alike=1.5, latents=1)
        found = contrast(region_statistics(made), "on_topic", "off_topic")
        episode_wise += found.contrast.t_p < 0.05
        clustered += found.difference.p_value < 0.05
        covered += found.difference.low <= 0 <= found.difference.high
        assert found.difference.clusters == 12
    assert 0.02 <= clustered / runs <= 0.08
    assert covered == runs - clustered
    # What the clustered test is there for: taking episodes for independent is far too eager.
    assert episode_wise / runs > 0.15


# --- clustered differences ---


def test_with_one_number_in_each_cluster_it_is_the_t_test():
    from scipy.stats import ttest_1samp, ttest_ind

    rng = np.random.default_rng(9)
    a, b = rng.normal(0, 1, 12), rng.normal(0.5, 2, 20)
    paired = mean_difference(a, range(12))
    expected = ttest_1samp(a, 0)
    assert paired.p_value == pytest.approx(expected.pvalue)
    assert (paired.low, paired.high) == pytest.approx(tuple(expected.confidence_interval()))
    apart = difference_of_means(a, range(12), b, range(20))
    welch = ttest_ind(b, a, equal_var=False)
    assert apart.value == pytest.approx(b.mean() - a.mean())
    assert apart.p_value == pytest.approx(welch.pvalue, rel=1e-6)
    assert (apart.low, apart.high) == pytest.approx(tuple(welch.confidence_interval()), rel=1e-6)


def test_what_cannot_be_known_is_none():
    alone = mean_difference(np.array([1.0, 2.0]), [3, 3])
    assert (alone.value, alone.low, alone.p_value, alone.clusters) == (1.5, None, None, 1)
    steady = mean_difference(np.array([1.0, 1.0, 1.0]), [1, 2, 3])
    assert (steady.value, steady.low, steady.p_value) == (1.0, None, None)
    assert mean_difference(np.zeros(3), [1, 2, 3]).p_value == 1.0
