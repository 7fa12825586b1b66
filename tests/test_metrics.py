"""Metrics against worked numbers; the share of one token against a plain count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import BIGRAM, DEAD, DENSE, NOISE, TOKEN, planted_cache, write_planted_run

from autointerp.metrics import METRICS, latent_metrics, token_concentration


def test_worked_numbers() -> None:
    # Positives 0.9 0.6 0.4, negatives 0.7 0.3: 4 of 6 pairs are in order; at 0.5: tp 2, fp 1, fn 1, tn 1.
    found = latent_metrics([1, 1, 1, 0, 0], [0.9, 0.6, 0.4, 0.7, 0.3])
    assert found == pytest.approx(
        {
            "auroc": 4 / 6,
            "average_precision": (1 / 1 + 2 / 3 + 3 / 4) / 3,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "f1": 2 * 2 / (2 * 2 + 1 + 1),
            "precision": 2 / 3,
            "recall": 2 / 3,
        }
    )


def test_ties_count_half_and_one_half_is_a_yes() -> None:
    found = latent_metrics([1, 0], [0.5, 0.5])
    assert found["auroc"] == 0.5
    assert found["recall"] == 1.0 and found["balanced_accuracy"] == 0.5


def test_hard_answers_have_an_auroc_equal_to_balanced_accuracy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, answers = rng.integers(2, size=30), rng.integers(2, size=30)
        found = latent_metrics(truth.tolist(), answers.astype(float).tolist())
        assert found["auroc"] == pytest.approx(found["balanced_accuracy"])


@pytest.mark.parametrize(("y_true", "y_score"), [([], []), ([1, 1], [0.2, 0.9]), ([0], [0.3])])
def test_without_both_classes_nothing_is_defined(y_true: list[int], y_score: list[float]) -> None:
    assert latent_metrics(y_true, y_score) == dict.fromkeys(METRICS)


def test_precision_is_undefined_where_nothing_is_predicted() -> None:
    found = latent_metrics([1, 0], [0.1, 0.0])
    assert found["precision"] is None
    assert found["recall"] == found["f1"] == 0.0


@pytest.mark.parametrize("entries_at_once", [1, 300, 10**9])
def test_token_concentration_is_the_largest_share_of_mass_on_one_token(tmp_path: Path, entries_at_once: int) -> None:
    cache = planted_cache(write_planted_run(tmp_path / "run"))
    shares = token_concentration(cache, entries_at_once)
    assert shares[TOKEN] == shares[BIGRAM] == 1.0
    assert np.isnan(shares[DEAD])
    for latent in (NOISE, DENSE):
        token, activation = cache.entries(latent)
        mass = np.bincount(cache.token_ids[token], weights=activation)
        assert shares[latent] == pytest.approx(mass.max() / mass.sum())
    assert shares[NOISE] < 0.2
