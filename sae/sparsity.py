"""Sparsity functions: which latents of a token are active, and how much."""

from __future__ import annotations

import torch
from torch import Tensor


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each token, through a ReLU.

    Args:
        pre_acts: [token, n_latents].
        k: how many are kept.

    Returns:
        Values [token, k], descending and not negative, and latent indices int64 [token, k].
    """
    values, indices = torch.topk(pre_acts, k, dim=-1)
    return values.relu(), indices


def above(pre_acts: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """The positive pre-activations of each token that exceed a threshold.

    Args:
        pre_acts: [token, n_latents].
        threshold: one number, or one per latent [n_latents].

    Returns:
        Values [token, width], descending, zero where a token has fewer than `width` of them, and latent indices int64
        [token, width]; `width` is the largest number of a token, at least 1.
    """
    kept = pre_acts * ((pre_acts > threshold) & (pre_acts > 0))
    width = max(1, int((kept > 0).sum(-1).max())) if kept.numel() else 1
    values, indices = torch.topk(kept, width, dim=-1)
    return values, indices
