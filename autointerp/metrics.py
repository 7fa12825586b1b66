"""Numbers from judgements and from latent caches. Metrics take (y_true, y_score), as in scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from sae.latents import LatentCache

THRESHOLD = 0.5
"""A score of at least this counts as a yes."""
METRICS = ("auroc", "average_precision", "balanced_accuracy", "f1", "precision", "recall")
ENTRIES_AT_ONCE = 4_000_000


def latent_metrics(y_true: Sequence[int], y_score: Sequence[float]) -> dict[str, float | None]:
    """Metrics of one latent's judgements; None where one is undefined.

    Without both classes nothing is defined. Precision is undefined where nothing is predicted, and f1 is then 0, since
    no positive is found: 2 tp / (2 tp + fp + fn).
    """
    truth, score = np.asarray(y_true), np.asarray(y_score, float)
    if len(np.unique(truth)) < 2:
        return dict.fromkeys(METRICS)
    predicted = (score >= THRESHOLD).astype(int)
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "average_precision": float(average_precision_score(truth, score)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, predicted)),
        "f1": float(f1_score(truth, predicted, zero_division=0.0)),
        "precision": float(precision_score(truth, predicted)) if predicted.any() else None,
        "recall": float(recall_score(truth, predicted)),
    }


def token_concentration(cache: LatentCache, entries_at_once: int = ENTRIES_AT_ONCE) -> npt.NDArray[np.float64]:
    """Share of each latent's activation mass that lies on its single most common token id; nan for a dead latent.

    Args:
        cache: the latent cache.
        entries_at_once: entries in memory at a time (more only for a latent that has more).
    """
    shares = np.full(cache.n_latents, np.nan)
    start = 0
    while start < cache.n_latents:
        limit = int(cache.offsets[start]) + entries_at_once
        stop = max(int(np.searchsorted(cache.offsets, limit, side="right")) - 1, start + 1)
        shares[start:stop] = _concentration(cache, start, stop)
        start = stop
    return shares


def _concentration(cache: LatentCache, start: int, stop: int) -> npt.NDArray[np.float64]:
    first, last = int(cache.offsets[start]), int(cache.offsets[stop])
    latent = np.repeat(np.arange(stop - start), np.diff(cache.offsets[start : stop + 1]))
    token = cache.token_ids[cache.token_index[first:last]].astype(np.int64)
    activation = cache.activation[first:last].astype(np.float64)
    # One key per (latent, token id); their masses are summed, then the largest of each latent is taken.
    width = int(token.max(initial=0)) + 1
    key, inverse = np.unique(latent * width + token, return_inverse=True)
    mass = np.bincount(inverse, weights=activation, minlength=len(key))
    largest, total = np.zeros(stop - start), np.zeros(stop - start)
    np.maximum.at(largest, key // width, mass)
    np.add.at(total, key // width, mass)
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = largest / total
    return shares
