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


def batch_topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k x token largest pre-activations of a batch, through a ReLU (Bussmann et al., arXiv 2412.06410).

    Args:
        pre_acts: [token, n_latents].
        k: how many are kept per token, on average.

    Returns:
        Values [token, width], zero where a token has fewer than `width` of them, and latent indices int64
        [token, width]; `width` is the largest number of a token, at least 1.
    """
    n_tokens, n_latents = pre_acts.shape
    flat, places = torch.topk(pre_acts.flatten(), k * n_tokens, sorted=False)
    tokens, order = places.div(n_latents, rounding_mode="floor").sort(stable=True)
    counts = torch.bincount(tokens, minlength=n_tokens)
    width = max(1, int(counts.max())) if n_tokens else 1
    # The how-manieth of its token each is.
    column = torch.arange(len(tokens), device=tokens.device) - (counts.cumsum(0) - counts)[tokens]
    values = flat.new_zeros(n_tokens, width).index_put((tokens, column), flat[order].relu())
    indices = places.new_zeros(n_tokens, width).index_put((tokens, column), places[order] % n_latents)
    return values, indices
