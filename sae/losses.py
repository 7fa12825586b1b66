"""One training pass per kind of autoencoder: the loss, and which latents were active. Pure; each cites its equation.

Everything is in the autoencoder's own units (inputs times `scale`), in which the mean squared norm is d_in, and
reconstruction errors are relative to the batch's variance, so that coefficients mean the same at every hookpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.config import SAEConfig
from sae.distributed import ALONE, Parallel
from sae.kernels import sparse_rows
from sae.model import SparseAutoencoder
from sae.sparsity import topk


@dataclass(frozen=True)
class Moment:
    """Where the training stands."""

    dead: Tensor | None = None
    """Indices int64 [n_dead] of latents that have not fired for long; None when there is none."""
    penalty: float = 1.0
    """Share of the sparsity penalty that counts now."""
    parallel: Parallel = ALONE
    """Where the rest of the batch is: sums over the batch go through `parallel.total`."""


@dataclass(frozen=True)
class Pass:
    """One pass over a batch."""

    loss: Tensor
    """What is minimised."""
    fvu: Tensor
    """The batch's fraction of variance unexplained, without gradient."""
    values: Tensor
    """[token, width]; zero is no latent."""
    indices: Tensor
    """int64 [token, width]."""


def variation(x: Tensor, parallel: Parallel = ALONE) -> Tensor:
    """Sum of squared distances from the batch mean, of x [token, width] and what the other processes have of it."""
    mean = parallel.total(x.sum(0)) / parallel.count(len(x))
    return parallel.total((x - mean).square().sum()).clamp_min(1e-12)


def topk_pass(model: SparseAutoencoder, x: Tensor, target: Tensor, sae: SAEConfig, moment: Moment) -> Pass:
    """FVU of a TopK autoencoder plus the AuxK loss: equations 2 and 4, A.2 of Gao et al., arXiv 2406.04093."""
    inputs, target = model.inputs(x), target * model.scale
    pre = model.pre_activations(inputs)
    values, indices = topk(pre, model.k or 1)
    error = target - sparse_rows(indices, values, model.w_dec) - model.b_dec
    fvu = moment.parallel.total(error.square().sum()) / variation(target, moment.parallel)
    loss = fvu
    if moment.dead is not None and sae.auxk:
        loss = loss + sae.auxk * _auxk_loss(model, pre, error.detach(), moment.dead, moment.parallel)
    return Pass(loss, fvu.detach(), values.detach(), indices)


def _auxk_loss(model: SparseAutoencoder, pre: Tensor, error: Tensor, dead: Tensor, parallel: Parallel) -> Tensor:
    """How much of the error the best dead latents leave, relative to the error; A.2 of arXiv 2406.04093."""
    # Half the width: what the paper found to work at every size.
    values, places = topk(pre[:, dead], min(len(dead), max(1, model.d_in // 2)))
    guess = sparse_rows(dead[places], values, model.w_dec)
    return parallel.total((error - guess).square().sum()) / parallel.total(error.square().sum()).clamp_min(1e-12)


PASSES: dict[str, Callable[[SparseAutoencoder, Tensor, Tensor, SAEConfig, Moment], Pass]] = {"topk": topk_pass}


def finite(*tensors: Tensor) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
