"""Dictionaries on held-out documents, beside what a token-mean lookup and a PCA reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.activations import SUBJECT_BATCH_TOKENS, Contexts, contexts, stream
from sae.contexts import ContextStore
from sae.hookpoints import Hookpoint
from sae.metrics import (
    DENSITY_EDGES,
    BaselineFitter,
    LatentCounter,
    ProjectionCounter,
    ReconstructionCounter,
    TokenMean,
    mean_max_cosine,
)
from sae.model import SAEOutput, SparseAutoencoder
from sae.splice import Splice, SpliceCounter, cross_entropies, divergences, spliced_logits, zero_ablation
from sae.subject import Subject, forward_inputs

LOSS_TOKENS = 8192
LOSS_BATCH_TOKENS = 512
"""Padded tokens in a batch whose logits are kept: twice this times the vocabulary in float32."""


@dataclass(frozen=True)
class Placed:
    """A dictionary at the hookpoint that it reads and the one that it predicts, the same but for a transcoder.

    Raises:
        ValueError: token means with a transcoder.
    """

    model: SparseAutoencoder
    source: Hookpoint
    target: Hookpoint
    baselines: BaselineFitter
    """Of the vectors at the target in training, without the means where there are any."""
    means: TokenMean | None = None
    """Taken off the vectors: the dictionary sees, and is measured on, what is left."""

    def __post_init__(self) -> None:
        if self.means is not None and self.source != self.target:
            raise ValueError("token means are taken off what an autoencoder reads; a transcoder has none")

    def left(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Vectors [token, width] without the means."""
        return x if self.means is None else x - self.means.predict(token_ids)

    def splice(self, token_ids: Tensor) -> Splice:
        """The reconstruction, means and all, in the place of the target on these tokens [token]."""

        def function(x: Tensor) -> Tensor:
            output: SAEOutput = self.model(self.left(x, token_ids))
            reconstruction = output.reconstruction
            return reconstruction if self.means is None else reconstruction + self.means.predict(token_ids)

        return Splice(self.source, self.target, function)


def evaluate(
    subject: Subject, held_out: ContextStore, dictionaries: Sequence[Placed], loss_tokens: int = LOSS_TOKENS
) -> list[dict[str, Any]]:
    """Metrics of each dictionary on held-out documents; None where one is undefined.

    Losses need whole passes of the subject, logits included: one as it is, one with zeros per target, and one per
    dictionary, over the first `loss_tokens` tokens of the same documents for all; 0 leaves the losses out.
    """
    counted = _counted(subject, held_out, dictionaries)
    results = [counters.result() for counters in counted]
    if loss_tokens:
        for result, losses in zip(results, _losses(subject, held_out, dictionaries, loss_tokens), strict=True):
            result.update(losses)
    return [{name: _defined(value) for name, value in result.items()} for result in results]


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Counters:
    """What is accumulated for one dictionary."""

    def __init__(self, dictionary: Placed) -> None:
        model, fitter = dictionary.model, dictionary.baselines
        width = model.architecture.width_out
        self._dictionary = dictionary
        self._own, self._token = ReconstructionCounter(width), ReconstructionCounter(width)
        self._latents = LatentCounter(model.n_latents)
        self._lookup = fitter.token_mean()
        # Without a k, how many components to take is known at the end.
        self._projection = ProjectionCounter(fitter.pca(model.k or width))

    def update(self, output: SAEOutput, target: Tensor, token_ids: Tensor) -> None:
        self._own.update(target, output.reconstruction)
        self._token.update(target, self._lookup.predict(token_ids))
        self._projection.update(target)
        self._latents.update(output.values, output.indices)

    def result(self) -> dict[str, Any]:
        own, latents, model = self._own.result(), self._latents.result(), self._dictionary.model
        k = model.k or max(1, round(latents.l0))
        return {
            "fvu": own.fvu,
            "explained_variance": own.explained_variance,
            "explained_variance_one_mean": own.explained_variance_one_mean,
            "cosine": own.cosine,
            "l0": latents.l0,
            "l1": latents.l1,
            "n_dead_eval": latents.n_dead,
            "dead_share_eval": latents.dead_share,
            "dense_share": latents.dense_share,
            "density_histogram": list(latents.density_histogram),
            "density_log10_edges": list(DENSITY_EDGES),
            "mean_max_cosine": mean_max_cosine(model.w_dec),
            "fvu_token_mean": self._token.result().fvu,
            "fvu_pca": self._projection.error(k) / own.variance,
            "pca_k": k,
            "n_tokens_eval": own.n_tokens,
        }


@torch.no_grad()
def _counted(subject: Subject, held_out: ContextStore, dictionaries: Sequence[Placed]) -> list[_Counters]:
    """One pass over all held-out documents."""
    counters = [_Counters(d) for d in dictionaries]
    hookpoints = sorted({h for d in dictionaries for h in (d.source, d.target)})
    batches = held_out.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
    for batch in stream(subject, held_out, hookpoints, batches):
        tokens = batch.token_ids.to(subject.device)
        vectors = dict(zip(hookpoints, batch.vectors, strict=True))
        for d, counter in zip(dictionaries, counters, strict=True):
            output = d.model(d.left(vectors[d.source], tokens))
            counter.update(output, d.left(vectors[d.target], tokens), tokens)
    return counters


@torch.no_grad()
def _losses(
    subject: Subject, held_out: ContextStore, dictionaries: Sequence[Placed], n_tokens: int
) -> list[dict[str, Any]]:
    """Cross entropy and KL with each dictionary spliced in, over usable positions that have a next token."""
    counters = [SpliceCounter() for _ in dictionaries]
    # Never round the store again: a document twice is no more evidence.
    n_tokens = min(n_tokens, held_out.n_tokens)
    batches = held_out.batches(LOSS_BATCH_TOKENS, np.random.default_rng(0), n_tokens)
    for part in contexts(held_out, batches):
        # A position predicts the token after it, so a context's last one has none.
        predicting = (part.usable[:, :-1] & part.usable[:, 1:]).nonzero(as_tuple=True)
        for counter, losses in zip(counters, _batch_losses(subject, part, dictionaries, predicting), strict=True):
            counter.update(predicting[0], losses)
    return [_named(counter) for counter in counters]


def _batch_losses(
    subject: Subject, part: Contexts, dictionaries: Sequence[Placed], predicting: tuple[Tensor, ...]
) -> list[Tensor]:
    """[4, position] for each dictionary: cross entropy as it is, with zeros, with the reconstruction; KL."""
    inputs = forward_inputs(subject, part.ids, part.documents, part.starts)
    tokens = part.ids[part.usable].to(subject.device)
    rows, columns = predicting
    following = part.ids[rows, columns + 1]

    def logits(splice: Splice | None = None) -> Tensor:
        return spliced_logits(subject, inputs, part.usable, splice)[rows, columns]

    own = logits()
    loss = cross_entropies(own, following)
    targets = sorted({d.target for d in dictionaries})
    zero = {target: cross_entropies(logits(zero_ablation(target)), following) for target in targets}
    found = []
    for d in dictionaries:
        spliced = logits(d.splice(tokens))
        pair = (cross_entropies(spliced, following), divergences(own, spliced))
        found.append(torch.stack([loss, zero[d.target], *pair]))
    return found


def _named(counter: SpliceCounter) -> dict[str, Any]:
    result = counter.result()
    names = ("ce_loss", "ce_loss_zero", "ce_loss_spliced", "ce_recovered", "ce_share_lost", "kl")
    return {**{name: getattr(result, name) for name in names}, "n_tokens_loss": result.n_tokens}
