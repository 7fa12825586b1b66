"""Intervals, tests and plans against worked numbers, scipy and simulated coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from autointerp.equivalence import equivalence, holm, verdict
from autointerp.power import draw_spread, latents_needed, latents_needed_per_draw
from autointerp.stats import (
    Estimate,
    cluster_difference,
    cluster_interval,
    cluster_means,
    mean_difference,
    mean_interval,
)
from autointerp.strata import density_edges, stratified_difference, stratum_counts
from benchmarks.coverage import COUNTS, SCENARIOS, CoverageConfig, coverage, main
from sae.errors import InputError

X, Y = [0.8, 0.9, 1.0, 0.7], [0.5, 0.6, 0.4, 0.7, 0.3]


def test_a_mean_has_its_t_interval() -> None:
    # mean 0.85, s = sqrt(0.05 / 3), t(3) = 3.182446
    found = mean_interval(X)
    assert found is not None and found.n == 4 and found.value == pytest.approx(0.85)
    assert found.low is not None and found.high is not None
    half = 3.182446 * math.sqrt(0.05 / 3) / 2
    assert (found.low, found.high) == pytest.approx((0.85 - half, 0.85 + half), abs=1e-6)
    expected = stats.t.interval(0.95, 3, loc=np.mean(X), scale=stats.sem(X))
    assert (found.low, found.high) == pytest.approx(expected)


def test_too_few_values_have_no_interval() -> None:
    assert mean_interval([]) is None
    one = mean_interval([0.4])
    assert one is not None and (one.value, one.low, one.high, one.n) == (0.4, None, None, 1)
    same = mean_interval([0.4, 0.4])
    assert same is not None and same.low == same.high == 0.4


def test_a_difference_of_means_has_welchs_interval() -> None:
    found = mean_difference(X, Y)
    assert found is not None
    expected = stats.ttest_ind(X, Y, equal_var=False).confidence_interval(0.95)
    assert found.difference.value == pytest.approx(0.35)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))


def test_hedges_g_is_the_difference_in_pooled_standard_deviations_corrected_for_size() -> None:
    # pooled variance (0.05 + 0.1) / 7, J = 1 - 3 / 27
    found = mean_difference(X, Y)
    assert found is not None and found.effect is not None
    g = (1 - 3 / 27) * 0.35 / math.sqrt(0.15 / 7)
    half = 1.959964 * math.sqrt(9 / 20 + g**2 / 18)
    effect = found.effect
    assert (effect.value, effect.low, effect.high) == pytest.approx((g, g - half, g + half), abs=1e-6)


def test_the_order_of_the_samples_is_the_sign() -> None:
    forth, back = mean_difference(X, Y), mean_difference(Y, X)
    assert forth is not None and back is not None and forth.effect is not None and back.effect is not None
    assert forth.difference.value == -back.difference.value > 0
    assert forth.effect.value == pytest.approx(-back.effect.value)


def test_degenerate_samples_have_no_effect_size() -> None:
    assert mean_difference([], X) is None
    single = mean_difference([0.5], X)
    assert single is not None and single.effect is None and single.difference.low is None
    constant = mean_difference([0.5, 0.5], [0.25, 0.25])
    assert constant is not None and constant.effect is None
    assert constant.difference.low == constant.difference.high == 0.25


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ends(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def draws(n: int, seed: int, at: float = 0.6) -> dict[Any, Any]:
    """Clusters of unequal size, keyed by (layer, seed)."""
    made = rng(seed)
    return {(i % 2, i): made.normal(made.normal(at, 0.05), 0.1, int(made.integers(5, 40))) for i in range(n)}


def test_a_t_estimate_carries_what_a_test_needs() -> None:
    found = mean_interval(X)
    assert found is not None and found.error == pytest.approx(math.sqrt(0.05 / 3) / 2) and found.freedom == 3
    assert found.interval(0.9) == pytest.approx(stats.ttest_1samp(X, 0).confidence_interval(0.9))
    assert found.p_above(0.7) == pytest.approx(stats.ttest_1samp(X, 0.7, alternative="greater").pvalue)
    assert found.p_below(0.7) == pytest.approx(stats.ttest_1samp(X, 0.7, alternative="less").pvalue)
    assert found.p_differs(0.7) == pytest.approx(stats.ttest_1samp(X, 0.7).pvalue)


def test_a_difference_has_welchs_p_value() -> None:
    found, expected = mean_difference(X, Y), stats.ttest_ind(X, Y, equal_var=False)
    assert found is not None and found.p == pytest.approx(expected.pvalue)
    assert found.difference.freedom == pytest.approx(expected.df) and found.difference.method == "Welch"


def test_without_variance_the_p_value_is_that_of_certainty() -> None:
    apart, same = mean_difference([0.5, 0.5], [0.25, 0.25]), mean_difference([0.5, 0.5], [0.5, 0.5])
    assert apart is not None and apart.p == 0 and same is not None and same.p == 1
    single = mean_difference([0.5], X)
    assert single is not None and single.p is None


def test_clusters_count_once_whatever_their_size() -> None:
    clusters = {0: [0.5] * 100, 1: [0.7], 2: [0.6, 0.6], 3: []}
    assert cluster_means(clusters) == pytest.approx([0.5, 0.7, 0.6])
    found = cluster_interval(clusters, rng())
    assert found is not None and (found.n, found.method, found.unit) == (3, "t", "clusters")
    expected = stats.ttest_1samp([0.5, 0.7, 0.6], 0).confidence_interval(0.95)
    assert ends(found) == pytest.approx((expected.low, expected.high))


def test_one_cluster_has_an_interval_over_its_latents_and_says_so() -> None:
    assert cluster_interval({0: []}, rng()) is None
    assert cluster_interval({0: X, 1: []}, rng()) == mean_interval(X)
    assert getattr(mean_interval(X), "unit", None) == "latents"


def test_the_bootstrap_starts_at_ten_clusters() -> None:
    nine, ten = cluster_interval(draws(9, 1), rng()), cluster_interval(draws(10, 1), rng())
    assert nine is not None and (nine.method, nine.freedom) == ("t", 8)
    assert ten is not None and (ten.method, ten.freedom, ten.unit, ten.n) == ("bootstrap", None, "clusters", 10)
    expected = stats.ttest_1samp(cluster_means(draws(10, 1)), 0).confidence_interval(0.95)
    assert ends(ten) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_the_bootstrap_depends_on_the_generator_and_not_on_the_order_of_the_clusters() -> None:
    clusters = draws(12, 2)
    turned = dict(reversed(list(clusters.items())))
    assert cluster_interval(clusters, rng(5)) == cluster_interval(turned, rng(5))
    assert cluster_interval(clusters, rng(5)) != cluster_interval(clusters, rng(6))


def test_a_bootstraps_interval_and_p_value_agree() -> None:
    found = cluster_interval(draws(12, 3), rng(), n_resamples=399)
    low, high = ends(found)
    assert found is not None
    for bound in (low - 1e-6, high + 1e-6):
        assert found.p_differs(bound) == pytest.approx(0.05, abs=1e-9)
    for bound in (low + 1e-6, high - 1e-6):
        assert found.p_differs(bound) == pytest.approx(0.055, abs=1e-9)
    assert found.p_differs(-9.0) == pytest.approx(2 / 400)


def test_clusters_nearly_all_alike_keep_the_t_interval() -> None:
    found = cluster_interval({i: [0.5, 0.5] for i in range(11)} | {11: [0.7, 0.7]}, rng())
    assert found is not None and found.method == "t" and found.low is not None


def test_paired_clusters_are_compared_key_by_key() -> None:
    one = {(1, 0): [0.6, 0.8], (1, 1): [0.9], (2, 0): [0.5, 0.7], (9, 9): [0.0]}
    two = {(2, 0): [0.5], (1, 1): [0.6, 0.8], (1, 0): [0.55, 0.65], (8, 8): [9.0]}
    found = cluster_difference(one, two, True, rng())
    assert found is not None
    expected = stats.ttest_rel([0.7, 0.9, 0.6], [0.6, 0.7, 0.5])
    assert found.difference.value == pytest.approx(0.4 / 3) and found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert ends(found.difference) == pytest.approx((interval.low, interval.high))
    assert (found.difference.n, found.difference.method) == (3, "paired t")
    # The effect size is over the latents of the shared keys.
    over_latents = mean_difference([0.6, 0.8, 0.9, 0.5, 0.7], [0.5, 0.6, 0.8, 0.55, 0.65])
    assert over_latents is not None and found.effect is not None and over_latents.effect is not None
    assert found.effect.value == pytest.approx(over_latents.effect.value)
    assert cluster_difference(one, {(7, 7): [1.0]}, True, rng()) is None


def test_unpaired_clusters_are_compared_by_welch_over_their_means() -> None:
    one, two = draws(3, 4), draws(5, 5, 0.5)
    found = cluster_difference(one, two, False, rng())
    expected = stats.ttest_ind(cluster_means(one), cluster_means(two), equal_var=False)
    assert found is not None and found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert ends(found.difference) == pytest.approx((interval.low, interval.high))
    assert (found.difference.n, found.difference.unit) == (8, "clusters")


def test_one_cluster_on_a_side_leaves_welch_over_latents() -> None:
    two = {1: Y[:2], 2: Y[2:]}
    assert cluster_difference({0: X}, two, False, rng()) == mean_difference(X, Y)
    assert cluster_difference({1: X, 3: Y}, two, True, rng()) == mean_difference(X, Y[:2])
    assert cluster_difference({}, two, False, rng()) is None


def test_many_clusters_are_compared_by_bootstrap_and_pairing_uses_what_they_share() -> None:
    one = draws(20, 6, 0.6)
    two = {key: values - 0.03 + 0.01 * rng(key[1]).standard_normal() for key, values in one.items()}
    paired, unpaired = (cluster_difference(one, two, way, rng(), 999) for way in (True, False))
    assert paired is not None and unpaired is not None
    assert (paired.difference.method, paired.difference.n) == ("paired bootstrap", 20)
    assert (unpaired.difference.method, unpaired.difference.n) == ("bootstrap", 40)
    widths = [high - low for low, high in (ends(paired.difference), ends(unpaired.difference))]
    assert widths[0] < 0.8 * widths[1]
    assert paired.p is not None and unpaired.p is not None and paired.p <= 0.05 < unpaired.p
    mixed = cluster_difference(one, draws(3, 7), False, rng())
    assert mixed is not None and mixed.difference.method == "Welch"


def test_pairs_are_resampled_together() -> None:
    made = rng(8)
    one = {i: [float(value)] for i, value in enumerate(made.exponential(1, 12))}
    two = {i: [values[0] - float(made.normal(0.1, 0.02))] for i, values in one.items()}
    found = cluster_difference(one, two, True, rng(), 999)
    # With one latent in each cluster only pairs are left to resample.
    of_differences = cluster_interval({i: [one[i][0] - two[i][0]] for i in one}, rng(), 999)
    assert found is not None and ends(found.difference) == pytest.approx(ends(of_differences))


def test_two_one_sided_tests_agree_with_scipy_and_with_the_interval_of_90_percent() -> None:
    found = mean_difference(X, Y)
    assert found is not None
    result = equivalence(found, 0.6)
    low = stats.ttest_ind(np.array(X) + 0.6, Y, equal_var=False, alternative="greater").pvalue
    high = stats.ttest_ind(np.array(X) - 0.6, Y, equal_var=False, alternative="less").pvalue
    assert result.p == pytest.approx(max(low, high)) and result.p == pytest.approx(high)
    interval = stats.ttest_ind(X, Y, equal_var=False).confidence_interval(0.9)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    for margin in (interval.high - 1e-6, interval.high + 1e-6):
        at = equivalence(found, margin)
        assert at.p is not None and (at.p <= 0.05) == (margin > interval.high)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.3, "different"), (0.0, "equivalent"), (0.03, "different but within the margin"), (0.09, "different")],
)
def test_a_difference_gets_its_verdict(value: float, expected: str) -> None:
    # Standard error 0.01: the interval is +- 0.0196, the one of 90 % +- 0.0164.
    estimate = Estimate(value, None, None, 100, error=0.01, freedom=math.inf)
    assert equivalence(estimate, 0.1).verdict == expected
    assert equivalence(Estimate(value, None, None, 100, error=0.5, freedom=9), 0.1).verdict == "undecided"
    assert equivalence(Estimate(value, None, None, 1), 0.1).verdict == "undecided"


def test_a_bootstraps_equivalence_is_read_off_its_resamples() -> None:
    # 99 pivots: the 5 % points are the fifth and the 95th, -2.25 and 2.25.
    pivots = np.linspace(-2.45, 2.45, 99)
    estimate = Estimate(0.02, None, None, 20, error=0.01, pivots=pivots)
    result = equivalence(estimate, 0.1)
    assert (result.low, result.high) == pytest.approx((0.02 - 0.0225, 0.02 + 0.0225))
    for margin, count in ((0.02 + 0.0226, 4), (0.02 + 0.0224, 5)):
        assert equivalence(estimate, margin).p == pytest.approx((1 + count) / 100)


def test_adjusted_p_values_make_a_verdict_and_a_margin_must_be_positive() -> None:
    assert verdict(0.2, 0.01) == "equivalent" and verdict(None, None) == "undecided"
    for margin in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="margin"):
            equivalence(Estimate(0.0, None, None, 2, error=1.0, freedom=1), margin)


def test_holm_multiplies_by_the_tests_that_are_left_and_skips_missing_ones() -> None:
    # Ascending 0.01, 0.015, 0.02, 0.5 times 4, 3, 2, 1 is 0.04, 0.045, 0.04, 0.5, and never falls.
    assert holm([0.02, None, 0.01, 0.5, 0.015]) == [pytest.approx(p) for p in (0.045, None, 0.04, 0.5, 0.045)]
    assert holm([0.4, 0.6]) == [0.8, 0.8] and holm([0.9, 0.7]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]
    (one, missing) = holm([0.03, math.nan])
    assert one == 0.03 and missing is not None and math.isnan(missing)


def test_the_latents_a_half_width_takes() -> None:
    assert latents_needed(0.15, 0.02) == 217 and latents_needed(0.2, 0.02) == 385
    # (1.959964 / 0.02)^2 (0.15^2 + 0.2^2) = 600.2
    assert latents_needed(0.15, 0.02, 0.2) == 601
    assert latents_needed(0.0, 0.02) == 2
    with pytest.raises(InputError, match="half-width"):
        latents_needed(0.15, 0.0)


@pytest.mark.parametrize(("first", "second", "width"), [(0.15, None, 0.02), (0.1, None, 0.1), (0.15, 0.05, 0.08)])
def test_an_estimated_spread_takes_the_fewest_latents_whose_own_interval_is_narrow_enough(
    first: float, second: float | None, width: float
) -> None:
    def half(n: int) -> float:
        if second is None:
            return float(stats.t.ppf(0.975, n - 1)) * first / math.sqrt(n)
        made = stats.ttest_ind_from_stats(0, first, n, 0, second, n, equal_var=False)
        a, b = first**2 / n, second**2 / n
        freedom = (a + b) ** 2 * (n - 1) / (a**2 + b**2)
        assert made.pvalue == 1
        return float(stats.t.ppf(0.975, freedom)) * math.sqrt(a + b)

    n = latents_needed(first, width, second, estimated=True)
    assert half(n) <= width < half(n - 1) and n > latents_needed(first, width, second)


def test_latents_per_draw_suffice_unless_draws_themselves_differ_too_much() -> None:
    def half(n: int, draws: int, sides: int) -> float:
        return float(stats.t.ppf(0.975, sides * (draws - 1))) * math.sqrt(sides * (0.01**2 + 0.15**2 / n) / draws)

    n = latents_needed_per_draw(0.01, 0.15, 5, 0.03)
    assert n is not None and half(n, 5, 1) <= 0.03 < half(n - 1, 5, 1)
    both = latents_needed_per_draw(0.01, 0.15, 5, 0.03, difference=True)
    assert both is not None and half(both, 5, 2) <= 0.03 < half(both - 1, 5, 2)
    # t(2) 0.05 / sqrt(3) = 0.124 stays, however many latents there are.
    assert latents_needed_per_draw(0.05, 0.15, 3, 0.12) is None
    assert latents_needed_per_draw(0.05, 0.15, 3, 0.13) is not None
    assert latents_needed_per_draw(0.01, 0.0, 5, 0.03) == 1
    with pytest.raises(InputError, match="draws"):
        latents_needed_per_draw(0.01, 0.15, 1, 0.03)


def test_a_pilot_tells_how_much_draws_and_latents_vary() -> None:
    # Variances 0.02 and 0.02, means 0.2 and 0.6: between^2 = 0.08 - 0.02 / 2.
    assert draw_spread({0: [0.1, 0.3], 1: [0.5, 0.7]}) == pytest.approx((math.sqrt(0.07), math.sqrt(0.02)))
    assert draw_spread({0: [0.1, 0.3], 1: [0.2, 0.2]}) == pytest.approx((0.0, 0.1))
    assert draw_spread({0: [0.1, 0.3], 1: [0.5]}) is None


def test_strata_of_density_are_weighted_by_their_overlap() -> None:
    # Strata [1, 2] and (2, 4]: differences 0.2 and 0.5, weights 2 * 3 / 5 = 1.2 and 2 * 2 / 4 = 1.
    first, at_first = [0.5, 0.7, 0.8, 1.0], [1.0, 1.5, 3.0, 4.0]
    second, at_second = [0.3, 0.5, 0.4, 0.3, 0.5], [1.2, 1.7, 2.0, 2.5, 3.2]
    found = stratified_difference(first, at_first, second, at_second, 2)
    assert found.difference is not None and found.left_out == 0
    assert [(s.n_first, s.n_second) for s in found.strata] == [(2, 3), (2, 2)]
    assert [s.difference for s in found.strata] == pytest.approx([0.2, 0.5])
    estimate = found.difference.difference
    assert estimate.value == pytest.approx((1.2 * 0.2 + 0.5) / 2.2)
    # Variances 0.02, 0.01 and 0.02, 0.02.
    parts = [1.44 * 0.02 / 2 / 2.2**2, 1.44 * 0.01 / 3 / 2.2**2, 0.02 / 2 / 2.2**2, 0.02 / 2 / 2.2**2]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 + parts[1] ** 2 / 2 + parts[2] ** 2 + parts[3] ** 2)
    assert estimate.error == pytest.approx(math.sqrt(sum(parts))) and estimate.freedom == pytest.approx(freedom)


def test_one_stratum_is_welch() -> None:
    found = stratified_difference(X, [0.1] * 4, [*Y, math.nan], [0.1] * 6)
    expected = mean_difference(X, Y)
    assert found.difference is not None and expected is not None and len(found.strata) == 1
    assert ends(found.difference.difference) == pytest.approx(ends(expected.difference))
    assert found.difference.p == pytest.approx(expected.p)


def test_latents_without_a_counterpart_are_left_out_and_counted() -> None:
    found = stratified_difference([0.1, 0.2, 0.8, 0.9], [1, 2, 30, 40], [0.3, 0.4, 0.7], [1, 2, 50], 2)
    assert found.left_out == pytest.approx(3 / 7) and [s.difference is None for s in found.strata] == [False, True]
    assert found.difference is not None and found.difference.difference.value == pytest.approx(-0.2)
    apart = stratified_difference([0.1, 0.2], [1, 2], [0.3, 0.4], [3, 4], 2)
    assert apart.difference is None and apart.left_out == 1
    nothing = stratified_difference([], [], [], [])
    assert nothing.difference is None and math.isnan(nothing.left_out) and nothing.strata == ()


def test_a_difference_made_by_density_alone_goes_away_when_densities_are_matched() -> None:
    made, covered, n = rng(), 0, 200
    for _ in range(n):
        logs = made.normal(-5, 1, 300), made.normal(-4.3, 1, 300)
        scores = [0.7 + 0.05 * at + made.normal(0, 0.05, 300) for at in logs]
        density = [np.exp(at) for at in logs]
        matched = stratified_difference(scores[0] + 0.02, density[0], scores[1], density[1]).difference
        low, high = ends(matched.difference if matched else None)
        covered += low <= 0.02 <= high
    naive = mean_difference(scores[0] + 0.02, scores[1])
    assert naive is not None and naive.p is not None and naive.p < 0.05 and naive.difference.value < 0
    assert covered / n > 0.88


def test_statuses_are_counted_by_density() -> None:
    edges = density_edges([0.1, 0.2], [0.3, 0.4], n_strata=2)
    assert edges.tolist() == [0.1, 0.2, 0.4]
    table = stratum_counts(
        [0.1, 0.2, 0.21, 0.4, 0.0, 7.0, math.nan], ["ok", "too_rare", "ok", "ok", "too_rare", "ok", "ok"], edges
    )
    assert table.columns.tolist() == ["low", "high", "ok", "too_rare"]
    assert table[["ok", "too_rare"]].to_numpy().tolist() == [[1, 2], [3, 0], [1, 0]]
    assert table["high"].tolist()[:2] == [0.2, 0.4] and math.isnan(table["high"].iloc[2])


@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[3]], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("n_clusters", [3, 12])
def test_intervals_hold_their_level_roughly(scenario: Any, n_clusters: int) -> None:
    """Fails where latents are taken as independent though draws dominate, which covers about half the time."""
    found = coverage(scenario, n_clusters, CoverageConfig(75 if n_clusters == 3 else 150, 0, 199))
    for name in ("mean", "unpaired difference", "paired difference"):
        assert found.pop(name) >= 0.89
    assert max(found.values()) <= 0.11


@pytest.mark.slow
@pytest.mark.parametrize("n_clusters", COUNTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_intervals_hold_their_level(scenario: Any, n_clusters: int) -> None:
    found = coverage(scenario, n_clusters, CoverageConfig())
    for name in ("mean", "unpaired difference", "paired difference"):
        assert 0.93 <= found[name] <= 0.97
    assert 0.03 <= found["false difference"] <= 0.07
    assert found["false equivalence"] <= 0.065


def test_the_coverage_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--experiments", "1", "--resamples", "39"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(SCENARIOS) * len(COUNTS) and lines[2].startswith("| 3, draws dominate | ")
