"""Intervals and effect sizes over latents or seeds. The sampling unit is the latent; a seed is a cluster of latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95

Values = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which is None where there are too few values; n is their number."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of a first sample minus that of a second one, and the same in standard deviations (Hedges' g)."""

    difference: Estimate
    effect: Estimate | None


def mean_interval(values: Values) -> Estimate | None:
    """The mean with its t interval, mean +- t(n - 1) s / sqrt(n); None without values."""
    x = np.asarray(values, float)
    if not len(x):
        return None
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, None, None, len(x))
    half = float(_quantile(len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half, len(x))


def mean_difference(first: Values, second: Values) -> Difference | None:
    """Difference of the means of two independent samples, with Welch's interval and Hedges' g; None if one is empty.

    Welch (1947): standard error sqrt(s1^2/n1 + s2^2/n2) with Satterthwaite's degrees of freedom.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    if not len(x) or not len(y):
        return None
    difference = float(x.mean() - y.mean())
    if len(x) < 2 or len(y) < 2:
        return Difference(Estimate(difference, None, None, len(x) + len(y)), None)
    a, b = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    half = 0.0
    if a + b > 0:
        half = float(_quantile((a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))) * math.sqrt(a + b))
    welch = Estimate(difference, difference - half, difference + half, len(x) + len(y))
    return Difference(welch, _hedges_g(x, y))


def _hedges_g(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Estimate | None:
    """Hedges' g = J (m1 - m2) / s_pooled with J = 1 - 3 / (4 df - 1), and its large-sample interval.

    Hedges and Olkin (1985), chapter 5: var(g) = (n1 + n2) / (n1 n2) + g^2 / (2 (n1 + n2)). None if nothing varies.
    """
    n, m = len(x), len(y)
    freedom = n + m - 2
    pooled = math.sqrt(((n - 1) * x.var(ddof=1) + (m - 1) * y.var(ddof=1)) / freedom)
    if pooled == 0:
        return None
    g = float((1 - 3 / (4 * freedom - 1)) * (x.mean() - y.mean()) / pooled)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((n + m) / (n * m) + g**2 / (2 * (n + m)))
    return Estimate(g, g - half, g + half, n + m)


def cluster_interval(clusters: Mapping[int, Values]) -> Estimate | None:
    """The mean of the clusters' means with the t interval over them; n is the number of clusters that have values.

    With fewer than ten clusters a bootstrap covers too seldom, while this interval holds its level.
    """
    return mean_interval(cluster_means(clusters))


def cluster_means(clusters: Mapping[int, Values]) -> list[float]:
    """Mean of each cluster that has values, in the order of their keys."""
    return [float(np.mean(clusters[key])) for key in sorted(clusters) if len(clusters[key])]


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
