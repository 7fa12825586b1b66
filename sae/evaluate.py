"""Dictionaries on held-out documents, beside what a token-mean lookup and a PCA reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.activations import SUBJECT_BATCH_TOKENS, stream, without_token_means
from sae.contexts import ContextStore
from sae.metrics import PCA, ReconstructionCounter, TokenMean
from sae.model import SparseAutoencoder
from sae.subject import Subject


def evaluate(
    subject: Subject,
    held_out: ContextStore,
    layers: Sequence[int],
    models: Sequence[SparseAutoencoder],
    baselines: Sequence[tuple[TokenMean, PCA]],
    means: Sequence[TokenMean | None],
) -> list[dict[str, Any]]:
    """Metrics of each dictionary on held-out documents, and beside them a token-mean lookup's and a PCA's.

    Dictionaries with `means` see, and are measured on, what is left without them.
    """
    counters = [[ReconstructionCounter(subject.d_model) for _ in range(3)] for _ in layers]
    active = [0] * len(layers)
    batches = held_out.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
    for batch in without_token_means(stream(subject, held_out, layers, batches), means):
        tokens = batch.token_ids.to(subject.device)
        for place, x in enumerate(batch.layers):
            with torch.no_grad():
                output = models[place](x)
            lookup, pca = baselines[place]
            guesses = (output.reconstruction, lookup.predict(tokens), pca.predict(x))
            for counter, guess in zip(counters[place], guesses, strict=True):
                counter.update(x, guess)
            active[place] += int((output.values > 0).sum())
    results = []
    for (sae, by_token, by_pca), n_active in zip(counters, active, strict=True):
        own = sae.result()
        others = {"fvu_token_mean": by_token.result().fvu, "fvu_pca": by_pca.result().fvu}
        results.append({"fvu": own.fvu, "cosine": own.cosine, "l0": n_active / own.n_tokens, **others})
        results[-1]["n_tokens_eval"] = own.n_tokens
    return results
