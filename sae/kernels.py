"""The sparse products of a TopK autoencoder and their gradients, with a plain reference beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sae.sparsity import topk


def sparse_rows(indices: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Weighted sums of rows of a table, sum_j weights[t, j] * table[indices[t, j]], without gathering them.

    Args:
        indices: int64 [token, k].
        weights: [token, k].
        table: [row, width].

    Returns:
        [token, width].
    """
    return functional.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


def scatter_rows(indices: Tensor, weights: Tensor, rows: Tensor, n_out: int) -> Tensor:
    """The transpose of `sparse_rows`: out[i] = sum of weights[t, j] * rows[t] over all (t, j) with indices[t, j] = i.

    The roles are swapped: each output row is a bag of the tokens that touch it, so nothing of size token x k x width is
    made, unlike with `index_add`.

    Args:
        indices: int64 [token, k], below `n_out`.
        weights: [token, k].
        rows: [token, width].
        n_out: rows of the result.

    Returns:
        [n_out, width].
    """
    flat, order = indices.flatten().sort(stable=True)
    tokens = order.div(indices.shape[1], rounding_mode="floor")
    offsets = torch.searchsorted(flat, torch.arange(n_out, device=flat.device))
    return functional.embedding_bag(tokens, rows, offsets, per_sample_weights=weights.flatten()[order], mode="sum")


class _TopKAutoencode(torch.autograd.Function):
    """Encode, select, decode; the gradients touch only the selected latents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, k: int) -> tuple[Tensor, ...]:
        values, indices = topk(torch.addmm(b_enc, x, w_enc.T), k)
        ctx.save_for_backward(x, w_enc, w_dec, values, indices)
        ctx.mark_non_differentiable(indices)
        return sparse_rows(indices, values, w_dec), values, indices

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        decoded, g_values, _ = gradients
        x, w_enc, w_dec, values, indices = ctx.saved_tensors
        g_values = g_values + _row_dots(decoded, w_dec, indices)
        # ReLU: a selected latent whose pre-activation is not positive is inactive.
        g_pre = g_values * (values > 0)
        g_w_dec = scatter_rows(indices, values, decoded, len(w_dec))
        g_w_enc = scatter_rows(indices, g_pre, x, len(w_enc))
        g_b_enc = torch.zeros(len(w_enc), dtype=x.dtype, device=x.device)
        g_b_enc.index_add_(0, indices.flatten(), g_pre.flatten())
        g_x = sparse_rows(indices, g_pre, w_enc) if ctx.needs_input_grad[0] else None
        return g_x, g_w_enc, g_b_enc, g_w_dec, None


def _row_dots(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """rows[t] . table[indices[t, j]] as [token, k]: embedding_bag's gradient with respect to its weights."""
    with torch.enable_grad():
        weights = torch.zeros(indices.shape, dtype=rows.dtype, device=rows.device, requires_grad=True)
        (dots,) = torch.autograd.grad(sparse_rows(indices, weights, table), weights, rows)
    return dots


def topk_autoencode(x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """TopK(x W_enc^T + b_enc) and its sparse product with the decoder.

    Equation (2) of Gao et al., arXiv 2406.04093, with a ReLU after the selection.

    Args:
        x: inputs, [token, d_in].
        w_enc: [n_latents, d_in].
        b_enc: [n_latents].
        w_dec: [n_latents, d_in].
        k: latents kept per token.

    Returns:
        The decoded sum without bias [token, d_in], the values [token, k] and the latent indices [token, k].
    """
    decoded, values, indices = _TopKAutoencode.apply(x, w_enc, b_enc, w_dec, k)  # type: ignore[no-untyped-call]
    return decoded, values, indices


def topk_autoencode_reference(
    x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`topk_autoencode` by dense products and autograd, for tests and for reading."""
    values, indices = topk(x @ w_enc.T + b_enc, k)
    latents = torch.zeros(len(x), len(w_enc), dtype=x.dtype, device=x.device).scatter(1, indices, values)
    return latents @ w_dec, values, indices
