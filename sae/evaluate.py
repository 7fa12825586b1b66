"""Dictionaries on held-out documents, beside what a token-mean lookup and a PCA reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.activations import SUBJECT_BATCH_TOKENS, stream, without_token_means
from sae.contexts import ContextStore
from sae.hookpoints import Hookpoint
from sae.metrics import BaselineFitter, ReconstructionCounter, TokenMean
from sae.model import SparseAutoencoder
from sae.subject import Subject


def evaluate(
    subject: Subject,
    held_out: ContextStore,
    hookpoints: Sequence[Hookpoint],
    models: Sequence[SparseAutoencoder],
    fitters: Sequence[BaselineFitter],
    means: Sequence[TokenMean | None],
) -> list[dict[str, Any]]:
    """Metrics of each dictionary on held-out documents, and beside them a token-mean lookup's and a PCA's.

    Dictionaries with `means` see, and are measured on, what is left without them.
    """
    lookups = [fitter.token_mean() for fitter in fitters]
    projections = [f.pca(model.k or 1) for f, model in zip(fitters, models, strict=True)]
    counters = [[ReconstructionCounter(subject.d_model) for _ in range(3)] for _ in hookpoints]
    active = [0] * len(hookpoints)
    batches = held_out.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
    for batch in without_token_means(stream(subject, held_out, hookpoints, batches), means):
        tokens = batch.token_ids.to(subject.device)
        for place, x in enumerate(batch.vectors):
            with torch.no_grad():
                output = models[place](x)
            guesses = (output.reconstruction, lookups[place].predict(tokens), projections[place].predict(x))
            for counter, guess in zip(counters[place], guesses, strict=True):
                counter.update(x, guess)
            active[place] += int((output.values > 0).sum())
    results = []
    for (sae, lookup, pca), n_active in zip(counters, active, strict=True):
        own = sae.result()
        baselines = {"fvu_token_mean": lookup.result().fvu, "fvu_pca": pca.result().fvu}
        results.append({"fvu": own.fvu, "cosine": own.cosine, "l0": n_active / own.n_tokens, **baselines})
        results[-1]["n_tokens_eval"] = own.n_tokens
    return results
