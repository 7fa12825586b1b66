"""One training pass per kind of autoencoder: the loss, and which latents were active. Pure; each cites its equation.

Everything is in the autoencoder's own units (inputs times `scale`), in which the mean squared norm is d_in, and
reconstruction errors are relative to the batch's variance, so that coefficients mean the same at every hookpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sae.config import SAEConfig
from sae.kernels import EncoderWeights, Transpose, decode, selected_values
from sae.model import SparseAutoencoder
from sae.sparsity import select_topk


@dataclass(frozen=True)
class Moment:
    """Where the training stands."""

    dead: Tensor | None = None
    """Indices int64 [n_dead] of latents that have not fired for long; None when there is none."""
    penalty: float = 1.0
    """Share of the sparsity penalty that counts now."""


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


def variation(x: Tensor) -> Tensor:
    """Sum of squared distances from the batch mean, of x [token, width]."""
    return (x - x.mean(0)).square().sum().clamp_min(1e-12)


def topk_pass(model: SparseAutoencoder, x: Tensor, target: Tensor, sae: SAEConfig, moment: Moment) -> Pass:
    """FVU of a TopK autoencoder plus the AuxK loss: equations 2 and 4, A.2 of Gao et al., arXiv 2406.04093."""
    with torch.no_grad():
        inputs, target = model.inputs(x), target * model.scale
        spread = variation(target)
    found = select_topk(inputs, model.w_enc, model.b_enc, model.k or 1)
    decoded, values, indices = _decoded(model, inputs, *found)
    reconstruction = decoded + model.b_dec
    fvu = functional.mse_loss(reconstruction, target, reduction="sum") / spread
    loss = fvu
    if moment.dead is not None and sae.auxk:
        loss = loss + sae.auxk * _auxk_loss(model, inputs, (target - reconstruction).detach(), moment.dead)
    return Pass(loss, fvu.detach(), values.detach(), indices)


def _decoded(model: SparseAutoencoder, inputs: Tensor, values: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """What selected latents decode to without bias [token, d_out]; their values, differentiable, and indices."""
    transpose = Transpose.of(indices, model.n_latents)
    weights = EncoderWeights(model.w_enc, model.b_enc, model.b_dec if model.architecture.subtract_b_dec else None)
    values = selected_values(values, indices, inputs, weights, transpose)
    return decode(values, indices, model.w_dec, transpose), values, indices


def _auxk_loss(model: SparseAutoencoder, inputs: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """How much of the error the best dead latents leave, relative to the error; A.2 of arXiv 2406.04093."""
    # Half the width: what the paper found to work at every size.
    k = min(len(dead), max(1, model.d_in // 2))
    values, places = select_topk(inputs, model.w_enc[dead], model.b_enc[dead], k)
    guess, *_ = _decoded(model, inputs, values, dead[places])
    return (error - guess).square().sum() / error.square().sum().clamp_min(1e-12)


PASSES: dict[str, Callable[[SparseAutoencoder, Tensor, Tensor, SAEConfig, Moment], Pass]] = {"topk": topk_pass}


def finite(*tensors: Tensor) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
