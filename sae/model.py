"""The sparse autoencoder: encode, decode, forward. No counters, no optimiser, no files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae.kernels import sparse_rows, topk_autoencode
from sae.sparsity import topk


@dataclass(frozen=True)
class SAEOutput:
    """What an autoencoder makes of a batch: `values` and `indices` [token, k], `reconstruction` [token, d_in]."""

    values: Tensor
    indices: Tensor
    reconstruction: Tensor


class SparseAutoencoder(nn.Module):
    """A TopK autoencoder on `[token, d_in]`, which may come from one hookpoint or from many.

    Inputs are multiplied by one number, `scale`, and the decoder bias is taken off before encoding; reconstructions are
    in the units of the inputs again. Gao et al., arXiv 2406.04093.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    scale: Tensor

    def __init__(self, d_in: int, n_latents: int, k: int) -> None:
        super().__init__()
        if not 1 <= k <= n_latents:
            raise ValueError(f"k must be between 1 and n_latents={n_latents}, got {k}")
        self.k = k
        self.w_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.w_dec = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    @property
    def d_in(self) -> int:
        """Width of the inputs."""
        return self.w_enc.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.w_enc.shape[0]

    @torch.no_grad()
    def initialise(self, sample: Tensor, generator: torch.Generator) -> None:
        """Set scale, biases and directions from a sample of inputs [token, d_in].

        The scale makes the mean squared norm d_in; the decoder bias is the mean; directions are uniform on the sphere,
        the encoder a copy of the decoder.
        """
        self.scale.copy_((self.d_in / sample.square().sum(-1).mean().clamp_min(1e-12)).sqrt())
        self.b_dec.copy_(sample.mean(0) * self.scale)
        self.b_enc.zero_()
        self.w_dec.copy_(torch.randn(self.w_dec.shape, generator=generator))
        self.normalise_decoder()
        self.w_enc.copy_(self.w_dec)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values [token, k] and indices int64 [token, k] of the active latents of x [token, d_in]."""
        return topk(torch.addmm(self.b_enc, x * self.scale - self.b_dec, self.w_enc.T), self.k)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """The reconstruction [token, d_in] from active latents."""
        return (sparse_rows(indices, values, self.w_dec) + self.b_dec) / self.scale

    def forward(self, x: Tensor) -> SAEOutput:
        """Encode and decode x [token, d_in], with sparse gradients."""
        decoded, values, indices = topk_autoencode(
            x * self.scale - self.b_dec, self.w_enc, self.b_enc, self.w_dec, self.k
        )
        return SAEOutput(values, indices, (decoded + self.b_dec) / self.scale)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder direction norm 1."""
        self.w_dec.div_(self.w_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def remove_radial_gradient(self) -> None:
        """Take the part of the decoder's gradient that would change the norms out of it."""
        gradient = self.w_dec.grad
        if gradient is not None:
            gradient.sub_(self.w_dec * (gradient * self.w_dec).sum(1, keepdim=True))
