"""Activations of a subject as streams of vectors, in the order of the contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sae.contexts import Batch, ContextStore
from sae.metrics import TokenMean
from sae.subject import Subject, residuals

SUBJECT_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class ActivationBatch:
    """Residual vectors of the usable positions of some contexts: padding and first positions are left out.

    `layers` holds one [token, d_model] float32 tensor per layer asked; `token_ids` [token] are the tokens they belong
    to; `batch` holds the contexts, and `usable` [context, position] says which of their positions these are.
    """

    layers: tuple[Tensor, ...]
    token_ids: Tensor
    batch: Batch
    usable: Tensor


def stream(
    subject: Subject, store: ContextStore, layers: Sequence[int], batches: Iterable[Batch]
) -> Iterator[ActivationBatch]:
    """Run the subject over batches of contexts and give the residual vectors after some of its blocks."""
    keys = store.document_keys.astype(np.int64)
    for batch in batches:
        ids = torch.from_numpy(batch.ids)
        documents = torch.from_numpy(keys[store.document_index[batch.contexts]])
        starts = torch.from_numpy(store.starts[batch.contexts].astype(np.int64))
        positions = torch.arange(ids.shape[1])
        usable = (positions > 0) & (positions < torch.from_numpy(batch.lengths)[:, None])
        caught = residuals(subject, ids, documents, starts, layers)
        kept = usable.to(subject.device)
        yield ActivationBatch(tuple(x[kept].float() for x in caught), ids[usable], batch, usable)


def without_token_means(
    batches: Iterable[ActivationBatch], means: Sequence[TokenMean | None]
) -> Iterator[ActivationBatch]:
    """The stream with each token's mean vector taken off, in the layers that have a table of means."""
    for batch in batches:
        tokens = batch.token_ids.to(batch.layers[0].device)
        pairs = zip(batch.layers, means, strict=True)
        yield replace(batch, layers=tuple(x if mean is None else x - mean.predict(tokens) for x, mean in pairs))
