"""Trained against nulls, on frames whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from autointerp.stats import CLUSTERS, LATENTS
from benchmarks.contrasts import CONTEXT_GAIN, contrasts_of, difference_of, learned_computation, mean_of
from benchmarks.discriminate import ALL, discrimination_table

GAIN = CONTEXT_GAIN.column
ENTROPY = "corrected_entropy"


def _frame(means: Mapping[str, float], seeds: int = 3, n: int = 300, seed_sd: float = 0.0) -> pd.DataFrame:
    """Latents at two layers whose context gain has the given mean in each variant; their entropy is noise."""
    rng = np.random.default_rng(0)
    parts = []
    for variant, mean in means.items():
        for seed in range(seeds):
            shift = rng.normal(0, seed_sd)
            for layer in (0, 1):
                columns = {GAIN: rng.normal(mean + shift, 0.1, n), ENTROPY: rng.normal(2, 0.5, n)}
                about = {"variant": variant, "dictionary": f"layers.{layer}", "layer": layer, "seed": seed}
                parts.append(pd.DataFrame({**columns, "density": rng.lognormal(-6, 1, n)}).assign(**about))
    return pd.concat(parts, ignore_index=True)


def test_a_gain_that_no_null_has_is_evidence() -> None:
    contrasts = contrasts_of(_frame({"trained": 0.10, "rerandomised": 0.02, "control": 0.0}))
    answer = learned_computation(contrasts)
    assert answer.startswith("yes") and "(rerandomised)" in answer
    gain = next(c for c in contrasts if c.measure == CONTEXT_GAIN and c.null == "rerandomised")
    estimate = gain.difference.difference
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < 0.08 < estimate.high
    assert (estimate.unit, estimate.n) == (CLUSTERS, 3)
    assert gain.difference.effect is not None and gain.difference.effect.value == pytest.approx(0.8, abs=0.1)


def test_the_largest_null_decides() -> None:
    answer = learned_computation(contrasts_of(_frame({"trained": 0.10, "rerandomised": 0.2, "control": 0.0})))
    assert answer.startswith("no") and "(rerandomised)" in answer


def test_the_same_gain_is_shown_to_be_the_same_and_is_no_evidence() -> None:
    contrasts = contrasts_of(_frame({"trained": 0.1, "rerandomised": 0.1}, n=3000))
    assert {c.verdict for c in contrasts if c.measure == CONTEXT_GAIN} == {"equivalent"}
    assert learned_computation(contrasts).startswith("no")


def test_a_difference_within_the_spread_of_seeds_is_undecided_however_many_latents() -> None:
    frame = _frame({"trained": 0.10, "rerandomised": 0.08}, n=5000, seed_sd=0.1)
    assert learned_computation(contrasts_of(frame)).startswith("undecided")


def test_one_seed_gives_an_interval_over_latents_with_every_dictionary_counting_alike() -> None:
    frame = _frame({"trained": 0.10, "control": 0.0}, seeds=1)
    # Ten times as many latents at one layer do not make that layer count more.
    shifted = frame[(frame["variant"] == "trained") & (frame["layer"] == 1)].assign(**{GAIN: lambda x: x[GAIN] + 0.1})
    frame = pd.concat([frame.drop(shifted.index), *[shifted] * 10], ignore_index=True)
    found = difference_of(*(frame[frame["variant"] == v] for v in ("trained", "control")), GAIN)
    assert found is not None and found.difference.unit == LATENTS
    assert found.difference.value == pytest.approx(0.15, abs=0.015)
    trained = mean_of(frame[frame["variant"] == "trained"], GAIN)
    assert trained is not None and trained.unit == LATENTS


def test_p_values_are_adjusted_for_all_comparisons_of_the_table() -> None:
    contrasts = contrasts_of(_frame({"trained": 0.10, "rerandomised": 0.09, "control": 0.0}, seeds=1))
    raw = [c.difference.p for c in contrasts]
    assert len(contrasts) == 4 and all(
        c.p is not None and r is not None and c.p >= r for c, r in zip(contrasts, raw, strict=True)
    )
    assert any(c.p != r for c, r in zip(contrasts, raw, strict=True))


def test_what_density_alone_explains_is_gone_among_latents_of_like_density() -> None:
    frame = _frame({"trained": 0.0, "rerandomised": 0.0}, seeds=1, n=4000)
    frame.loc[frame["variant"] == "trained", "density"] *= 3
    frame[GAIN] = np.log(frame["density"]) * 0.1
    (found,) = [c for c in contrasts_of(frame) if c.measure == CONTEXT_GAIN]
    assert found.difference.difference.value == pytest.approx(0.1 * np.log(3), abs=0.01)
    assert abs(found.matched) < 0.02


def test_a_classifier_finds_the_measure_that_differs_and_no_other() -> None:
    table = discrimination_table(_frame({"trained": 0.3, "rerandomised": 0.0}, seeds=2))
    auroc = dict(zip(table["measure"], table["auroc"], strict=True))
    assert auroc[CONTEXT_GAIN.label] > 0.95 and auroc[ALL] > 0.95
    assert auroc["entropy, corrected (nats)"] == pytest.approx(0.5, abs=0.05)
    assert set(table["n_groups"]) == {4}


def test_a_classifier_needs_two_groups() -> None:
    frame = _frame({"trained": 0.3, "rerandomised": 0.0}, seeds=1)
    assert discrimination_table(frame[frame["layer"] == 0]).empty
