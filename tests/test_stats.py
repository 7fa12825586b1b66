"""Intervals against worked numbers, scipy and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from autointerp.stats import cluster_interval, mean_difference, mean_interval

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


def test_clusters_count_once_whatever_their_size() -> None:
    found = cluster_interval({0: [0.5] * 100, 1: [0.7], 2: [0.6, 0.6], 3: []})
    assert found == mean_interval([0.5, 0.7, 0.6])


def test_intervals_hold_their_level() -> None:
    """With three clusters whose own variance dominates, where a bootstrap covers only about 75 %."""
    rng, covered, n = np.random.default_rng(0), [0, 0], 1500
    for _ in range(n):
        means = rng.normal(0.6, 0.05, 3)
        clusters = cluster_interval({i: rng.normal(m, 0.1, 40).tolist() for i, m in enumerate(means)})
        assert clusters is not None and clusters.low is not None and clusters.high is not None
        covered[0] += clusters.low <= 0.6 <= clusters.high
        welch = mean_difference(rng.normal(0.7, 0.15, 30), rng.normal(0.6, 0.05, 12))
        assert welch is not None and welch.difference.low is not None and welch.difference.high is not None
        covered[1] += welch.difference.low <= 0.1 <= welch.difference.high
    assert all(0.93 <= count / n <= 0.97 for count in covered)
