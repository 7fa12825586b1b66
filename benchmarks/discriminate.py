"""Which measures tell latents of a trained network from those of a random one, and how well.

A score that is the same for both may still go with others that are not. Groups of one dictionary and seed are held out
together; a classifier can otherwise know a latent by its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut

from autointerp.stats import mean_interval
from benchmarks.contrasts import MEASURES, TRAINED, Measure

ALL = "all together"
MAX_PER_GROUP = 2000
"""Latents of a group of one variant that take part, drawn by a fixed seed: more would only take longer."""


def discrimination_table(frame: pd.DataFrame, measures: Sequence[Measure] = MEASURES) -> pd.DataFrame:
    """AUROC of "trained or this null" on held-out groups, for each measure alone and for all of them.

    Gradient boosting, which needs no scaling and takes undefined measures as they are. A group is one (dictionary,
    seed) pair; each is held out once.

    Returns:
        Columns null, measure, auroc, low, high (t interval over the held-out groups' values), n_groups; empty where a
        null shares fewer than two groups with the trained network.
    """
    known = [measure for measure in measures if measure.column in frame]
    rows = []
    for null in [variant for variant in frame["variant"].unique() if variant != TRAINED]:
        both = _balanced(frame[frame["variant"].isin([TRAINED, null])])
        if both["group"].nunique() < 2:
            continue
        for label, columns in [*((m.label, [m.column]) for m in known), (ALL, [m.column for m in known])]:
            held_out = _held_out_aurocs(both, columns)
            estimate = mean_interval(held_out)
            if estimate is not None:
                row = {"null": null, "measure": label, "auroc": estimate.value, "low": estimate.low}
                rows.append({**row, "high": estimate.high, "n_groups": len(held_out)})
    return pd.DataFrame(rows, columns=["null", "measure", "auroc", "low", "high", "n_groups"])


def _balanced(both: pd.DataFrame) -> pd.DataFrame:
    """The groups that both variants have, with a limited number of living latents of each."""
    both = both[both["density"] > 0].assign(group=both["dictionary"].astype(str) + "/" + both["seed"].astype(str))
    sides = both.groupby("group")["variant"].nunique()
    both = both[both["group"].isin(sides[sides == 2].index)]
    rng = np.random.default_rng(0)
    parts = [part.iloc[rng.permutation(len(part))[:MAX_PER_GROUP]] for _, part in both.groupby(["group", "variant"])]
    return pd.concat(parts) if parts else both


def _held_out_aurocs(both: pd.DataFrame, columns: Sequence[str]) -> list[float]:
    x, y = both[list(columns)].to_numpy(float), (both["variant"] == TRAINED).to_numpy()
    found = []
    for train, test in LeaveOneGroupOut().split(x, y, both["group"]):
        model = HistGradientBoostingClassifier(max_iter=50, max_leaf_nodes=8, random_state=0)
        found.append(float(roc_auc_score(y[test], model.fit(x[train], y[train]).predict_proba(x[test])[:, 1])))
    return found
