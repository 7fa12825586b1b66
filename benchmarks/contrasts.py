"""Trained against each null, measure by measure, over layers and seeds: differences, tests, and what they come to.

The frame of all functions has one row a latent: `variant`, `dictionary` (its label: hookpoint and size), `seed` (of
dictionary and variant), `density`, and a column for every measure, nan where a latent has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from autointerp.equivalence import Equivalence, equivalence, holm, verdict
from autointerp.stats import Difference, Estimate, cluster_difference, cluster_interval, mean_difference
from autointerp.strata import stratified_difference

TRAINED = "trained"
RNG_SEED = 0


@dataclass(frozen=True)
class Measure:
    """A column that is compared, what it is called, and how large a difference still counts as none."""

    column: str
    label: str
    margin: float
    spec: str = ".3f"


CONTEXT_GAIN = Measure("context_gain_average_precision", "context gain (AP)", 0.02)
"""What the left context adds to the token: the evidence for learned computation that needs no LLM."""
MEASURES = (
    Measure("token_average_precision", "token lookup (AP)", 0.02),
    CONTEXT_GAIN,
    Measure("context_gain_auroc", "context gain (AUROC†)", 0.01),
    Measure("trie_conditional_auroc", "AUROC† given the token", 0.02),
    Measure("corrected_entropy", "entropy, corrected (nats)", 0.25, ".2f"),
    Measure("top_corrected_entropy", "the same, strongest windows", 0.25, ".2f"),
    Measure("token_entropy", "entropy, paper A (nats)", 0.25, ".2f"),
    Measure("mass_on_top_token", "mass on one token", 0.02),
)


@dataclass(frozen=True)
class Contrast:
    """Trained minus one null in one measure."""

    measure: Measure
    null: str
    difference: Difference
    matched: float
    """The same among latents of like density; nan where none are alike."""
    equivalent: Equivalence
    p: float | None
    """Adjusted by Holm for all contrasts of the table."""
    p_equivalent: float | None

    @property
    def verdict(self) -> str:
        """What the two adjusted p values say."""
        return verdict(self.p, self.p_equivalent)


def samples(frame: pd.DataFrame, column: str) -> dict[int, np.ndarray[Any, Any]]:
    """Values of a measure by seed, where they are defined."""
    known = frame.dropna(subset=[column])
    return {int(seed): part[column].to_numpy(float) for seed, part in known.groupby("seed")}


def mean_of(frame: pd.DataFrame, column: str) -> Estimate | None:
    """Mean of a measure over the latents of one variant: over seeds where there are several, else over latents."""
    return cluster_interval(samples(frame, column), np.random.default_rng(RNG_SEED))


def difference_of(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Difference | None:
    """Mean of a measure in one variant minus that in another; every dictionary counts alike.

    With several seeds: for each seed the mean over dictionaries of their means, and the interval is over seeds, paired
    where they are the same. With one: the mean over dictionaries of the differences, with the standard error from their
    latents.
    """
    both = sorted(set(first["dictionary"]) & set(second["dictionary"]))
    sides = [side[side["dictionary"].isin(both)].dropna(subset=[column]) for side in (first, second)]
    latents = mean_difference(*(side[column].to_numpy(float) for side in sides))
    if latents is None:
        return None
    layered = [_layer_means(side, column) for side in sides]
    shared = sorted(set(layered[0]) & set(layered[1]))
    if min(map(len, layered)) > 1:
        # Draws with the same seed share the order of their data; without two such seeds the sides are independent.
        found = cluster_difference(*layered, paired=len(shared) > 1, rng=np.random.default_rng(RNG_SEED))
        return None if found is None else Difference(found.difference, latents.effect)
    apart = [
        mean_difference(*(side.loc[side["dictionary"] == name, column].to_numpy(float) for side in sides))
        for name in both
    ]
    return Difference(_averaged([one.difference for one in apart if one is not None]), latents.effect)


def _layer_means(side: pd.DataFrame, column: str) -> dict[int, list[float]]:
    """Mean over dictionaries of their means, by seed."""
    means = side.groupby(["seed", "dictionary"])[column].mean()
    return {int(seed): [float(values.mean())] for seed, values in means.groupby("seed")}


def _averaged(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, with Satterthwaite's degrees of freedom."""
    if len(parts) == 1:
        return parts[0]
    value = float(np.mean([part.value for part in parts]))
    bare = Estimate(value, None, None, sum(part.n for part in parts), "Welch")
    if any(part.error is None for part in parts):
        return bare
    variances = np.array([float(part.error or 0.0) ** 2 for part in parts]) / len(parts) ** 2
    error = math.sqrt(variances.sum())
    freedom = float(variances.sum() ** 2 / (variances**2 / [part.freedom for part in parts]).sum()) if error else 1.0
    known = Estimate(value, None, None, bare.n, "Welch", error=error, freedom=freedom)
    low, high = known.interval() or (None, None)
    return Estimate(value, low, high, bare.n, "Welch", error=error, freedom=freedom)


def contrasts_of(frame: pd.DataFrame, measures: Sequence[Measure] = MEASURES) -> list[Contrast]:
    """Every measure against every null, with p values adjusted for their number."""
    trained = frame[frame["variant"] == TRAINED]
    nulls = [variant for variant in frame["variant"].unique() if variant != TRAINED]
    found = []
    for measure in measures:
        if measure.column not in frame:
            continue
        for null in nulls:
            other = frame[frame["variant"] == null]
            difference = difference_of(trained, other, measure.column)
            if difference is not None:
                matched = _matched(trained, other, measure.column)
                found.append((measure, null, difference, matched, equivalence(difference, measure.margin)))
    p, q = holm([row[2].p for row in found]), holm([row[4].p for row in found])
    return [Contrast(*row, *adjusted) for row, adjusted in zip(found, zip(p, q, strict=True), strict=True)]


def _matched(first: pd.DataFrame, second: pd.DataFrame, column: str) -> float:
    """Density-matched difference, mean over the seeds and dictionaries that both have."""
    keys = ["seed", "dictionary"]
    mine, theirs = dict(list(first.groupby(keys))), dict(list(second.groupby(keys)))
    values = []
    for key in mine.keys() & theirs.keys():
        pair = (mine[key], theirs[key])
        found = stratified_difference(*(side[name].to_numpy(float) for side in pair for name in (column, "density")))
        if found.difference is not None:
            values.append(found.difference.difference.value)
    return float(np.mean(values)) if values else float("nan")


def learned_computation(contrasts: Sequence[Contrast]) -> str:
    """Whether the trained network's latents use context that no null's do: yes, no or undecided, and why."""
    gains = [contrast for contrast in contrasts if contrast.measure == CONTEXT_GAIN]
    if not gains:
        return "undecided: the context gain is not known for a trained network and a null"
    least = min(gains, key=lambda contrast: contrast.difference.difference.value)
    estimate, p = least.difference.difference, least.p
    interval = "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    about = f"context gain, trained minus the largest null ({least.null}), {estimate.value:+.3f}{interval}"
    if p is None:
        return f"undecided: {about}"
    if p <= 0.05 and estimate.value > 0:
        return f"yes: {about}"
    enough = least.verdict == "equivalent" or (p <= 0.05 and estimate.value < 0)
    return f"{'no' if enough else 'undecided'}: {about}"
