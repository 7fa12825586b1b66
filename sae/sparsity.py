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
