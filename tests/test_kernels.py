"""The sparse products against dense ones."""

from __future__ import annotations

import pytest
import torch

from sae.kernels import scatter_rows, sparse_rows, topk_autoencode, topk_autoencode_reference


def _weights(d_in: int, n_latents: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n_latents, d_in), (n_latents,), (n_latents, d_in)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_sparse_rows_is_the_product_with_the_scattered_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(50, 7, generator=generator)
    indices, weights = torch.randint(50, (20, 4), generator=generator), torch.randn(20, 4, generator=generator)
    dense = torch.zeros(20, 50).index_put((torch.arange(20)[:, None], indices), weights, accumulate=True)
    torch.testing.assert_close(sparse_rows(indices, weights, table), dense @ table)


def test_scatter_rows_is_the_transposed_product_and_leaves_untouched_rows_zero() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(20, 7, generator=generator)
    indices, weights = torch.randint(40, (20, 4), generator=generator), torch.randn(20, 4, generator=generator)
    dense = torch.zeros(20, 50).index_put((torch.arange(20)[:, None], indices), weights, accumulate=True)
    out = scatter_rows(indices, weights, rows, 50)
    torch.testing.assert_close(out, dense.T @ rows)
    assert not out[40:].any()


@pytest.mark.parametrize("k", [1, 5, 30])
def test_every_gradient_equals_dense_autograd(k: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 8, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    results = []
    for function in (topk_autoencode, topk_autoencode_reference):
        parameters = _weights(8, 30)
        decoded, values, indices = function(x, *parameters, k)
        # Values enter the loss by themselves as well, as an L1 penalty would.
        loss = (decoded - target).square().sum() + values.pow(2).sum()
        results.append((decoded, indices, *torch.autograd.grad(loss, [x, *parameters])))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)
