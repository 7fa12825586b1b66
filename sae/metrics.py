"""How good a reconstruction is, which latents are in use, and what cheap predictors reach.

Accumulators give frozen results; what is undefined is nan. FVU is sum ||x - x_hat||^2 / sum ||x - mean(x)||^2 with the
vector mean over the evaluated tokens: lower is better, 1 is what the mean itself reaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sae.distributed import Parallel

DENSE = 0.1
"""A latent that fires on a larger share of the tokens is dense."""
DENSITY_EDGES = tuple(edge / 2 for edge in range(-12, 1))
"""Edges of the density histogram in log10: two bins a decade; what is rarer than the first edge is in the first bin."""
VARIANCE_FLOOR = 1e-12
"""Share of the squares below which a variance is rounding."""


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Over the evaluated tokens."""

    fvu: float
    explained_variance: float
    """1 - FVU."""
    explained_variance_one_mean: float
    """1 - error / the variance of all scalars round one mean, as in Lawson et al., arXiv 2409.04185: what the mean
    vector explains counts as explained."""
    cosine: float
    variance: float
    """Sum of ||x - mean(x)||^2; nan when the inputs do not vary."""
    n_tokens: int


class ReconstructionCounter:
    """Accumulates reconstruction errors over batches, in float64, from the first batch's mean as origin.

    A sum of squares less the square of a sum would lose every digit where the mean is large beside the deviations.
    """

    def __init__(self, d_in: int) -> None:
        self._error = self._squares = self._raw = self._cosine = 0.0
        self._origin: Tensor | None = None
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._n = 0

    def update(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add inputs and their reconstructions, both [token, d_in]."""
        if not len(x):
            return
        exact = x.double()
        if self._origin is None:
            self._origin = exact.mean(0)
        centred = exact - self._origin
        self._error += float((exact - reconstruction).square().sum())
        self._squares += float(centred.square().sum())
        self._raw += float(exact.square().sum())
        self._cosine += float(torch.cosine_similarity(x, reconstruction, dim=-1).sum(dtype=torch.float64))
        self._sum += centred.sum(0).cpu()
        self._n += len(x)

    def result(self) -> ReconstructionMetrics:
        """The metrics; those of the variance are nan when the inputs do not vary."""
        n, origin = max(self._n, 1), 0.0 if self._origin is None else self._origin.cpu()
        mean = self._sum / n
        variance = self._squares - n * float(mean.square().sum())
        if variance <= VARIANCE_FLOOR * self._raw:
            variance = math.nan
        mean = mean + origin
        one_mean = variance + n * float((mean - mean.mean()).square().sum())
        fvu = self._error / variance
        return ReconstructionMetrics(fvu, 1 - fvu, 1 - self._error / one_mean, self._cosine / n, variance, self._n)


@dataclass(frozen=True)
class LatentMetrics:
    """How latents are used, over the evaluated tokens; a latent fires where its value is positive."""

    l0: float
    """Mean number of latents that fire on a token."""
    l1: float
    """Mean sum of the values of a token, in the units of the scaled input."""
    n_dead: int
    """Latents that never fire."""
    dead_share: float
    dense_share: float
    """Share of the latents that fire on more than a tenth of the tokens."""
    density_histogram: tuple[int, ...]
    """Latents by log10 of the share of tokens on which they fire (`DENSITY_EDGES`); dead ones are in no bin."""


class LatentCounter:
    """Accumulates how often latents fire."""

    def __init__(self, n_latents: int) -> None:
        self._counts = torch.zeros(n_latents, dtype=torch.int64)
        self._l1 = 0.0
        self._n = 0

    def update(self, values: Tensor, indices: Tensor) -> None:
        """Add active latents, both [token, width]; a value of zero is no latent."""
        fired = indices[values > 0].flatten()
        self._counts += torch.bincount(fired, minlength=len(self._counts)).cpu()
        self._l1 += float(values.sum(dtype=torch.float64))
        self._n += len(values)

    def merge(self, other: LatentCounter) -> None:
        """Add what another counter of the same latents has seen."""
        self._counts += other._counts
        self._l1, self._n = self._l1 + other._l1, self._n + other._n

    def result(self) -> LatentMetrics:
        """The metrics."""
        n, n_latents = max(self._n, 1), len(self._counts)
        density = self._counts.numpy() / n
        alive = np.log10(density[density > 0])
        histogram = np.histogram(alive.clip(DENSITY_EDGES[0]), DENSITY_EDGES)[0]
        n_dead = n_latents - len(alive)
        dense = float((density > DENSE).mean())
        l0 = float(self._counts.sum()) / n
        return LatentMetrics(l0, self._l1 / n, n_dead, n_dead / n_latents, dense, tuple(histogram.tolist()))


@torch.no_grad()
def mean_max_cosine(directions: Tensor, others: Tensor | None = None, rows: int = 1024) -> float:
    """MMCS: the mean over directions d_i of the largest cosine with another one.

    mean_i max_{j != i} cos(d_i, d_j) within a dictionary (Lawson et al., arXiv 2409.04185), and mean_i max_j
    cos(d_i, e_j) from one dictionary to another (Sharkey et al., 2022), which is not symmetric. Takes n^2 d products,
    `rows` rows at a time.

    Args:
        directions: decoder directions [latent, d].
        others: those of another dictionary [other, d].
        rows: how many directions are compared at a time.

    Returns:
        A number from -1 to 1; nan where a direction has nothing to be compared with.
    """
    own = functional.normalize(directions, dim=1)
    reference = own if others is None else functional.normalize(others, dim=1)
    if not len(own) or len(reference) < (2 if others is None else 1):
        return math.nan
    total = 0.0
    for first in range(0, len(own), rows):
        cosines = own[first : first + rows] @ reference.T
        if others is None:
            row = torch.arange(len(cosines), device=cosines.device)
            cosines[row, row + first] = -math.inf
        total += float(cosines.amax(1).sum(dtype=torch.float64))
    return total / len(own)


@dataclass(frozen=True)
class TokenMean:
    """Predicts a vector from the token alone: the mean over that token's training occurrences."""

    mean: Tensor
    """[d_in], for tokens not seen in training."""
    by_token: Tensor
    """[vocabulary, d_in]."""

    def predict(self, token_ids: Tensor) -> Tensor:
        """The predictions [token, d_in]."""
        return self.by_token[token_ids]

    def to(self, device: torch.device) -> TokenMean:
        """The same on another device."""
        return TokenMean(self.mean.to(device), self.by_token.to(device))


@dataclass(frozen=True)
class PCA:
    """Projects on the k directions of largest variance of the training vectors."""

    mean: Tensor
    directions: Tensor
    """[k, d_in], orthonormal, those of largest variance first."""

    def predict(self, x: Tensor) -> Tensor:
        """The projections of x [token, d_in]."""
        return self.mean + (x - self.mean) @ self.directions.T @ self.directions


@dataclass(frozen=True)
class Moments:
    """Mean [d_in] and covariance [d_in, d_in] of vectors, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor

    @property
    def directions(self) -> Tensor:
        """Principal components [d_in, d_in], one a row, that of the largest variance first."""
        vectors: Tensor = torch.linalg.eigh(self.covariance).eigenvectors
        return vectors.T.flip(0)


class ProjectionCounter:
    """Accumulates what each principal component carries of some vectors: the error of any number of them follows."""

    def __init__(self, pca: PCA) -> None:
        self._pca = pca
        self._total = 0.0
        self._carried = torch.zeros(len(pca.directions), dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Add vectors [token, d_in]."""
        centred = x - self._pca.mean
        self._total += float(centred.square().sum(dtype=torch.float64))
        self._carried += (centred @ self._pca.directions.T).square().sum(0, dtype=torch.float64).cpu()

    def error(self, k: int) -> float:
        """Sum of the squared errors of the projection on the first k components."""
        return max(0.0, self._total - float(self._carried[:k].sum()))


class BaselineFitter:
    """Accumulates what the token-mean and the PCA baseline need, over the vectors that the dictionary is trained on."""

    def __init__(self, vocabulary: int, d_in: int, device: torch.device) -> None:
        # A frequent token comes millions of times: float32 would stop counting at 2^24.
        self._sums = torch.zeros(vocabulary, d_in, device=device, dtype=torch.float64)
        self._counts = torch.zeros(vocabulary, device=device, dtype=torch.int64)
        # Float64 on the CPU: a residual stream has directions whose variance is a millionth of the largest.
        self._moments = torch.zeros(d_in, d_in, dtype=torch.float64)
        # Near the mean: the first batch's. Not a number until there is one.
        self._origin = torch.full((d_in,), math.nan, device=device)
        self._empty = True

    def update(self, x: Tensor, token_ids: Tensor) -> None:
        """Add vectors [token, d_in] and their tokens [token]."""
        token_ids = token_ids.to(x.device)
        self._sums.index_add_(0, token_ids, x.double())
        self._counts += torch.bincount(token_ids, minlength=len(self._counts))
        if self._empty:
            self._origin.copy_(x.mean(0, dtype=torch.float64))
            self._empty = False
        # The products are float32: a large mean would leave no digits for the variance.
        centred = x - self._origin
        self._moments += (centred.T @ centred).double().cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """What was accumulated."""
        return {"sums": self._sums, "counts": self._counts, "moments": self._moments, "origin": self._origin}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        self._empty = bool(self._origin.isnan().all())

    def unite(self, parallel: Parallel) -> None:
        """Add what the fitters of the other processes have seen."""
        if parallel.world == 1:
            return
        own = self._origin.clone()
        parallel.copy_main([self._origin])
        # sum (y + d)(y + d)^T over y = x - own, with d = own - common.
        d, n = (own - self._origin).double().cpu(), self._counts.sum().double().cpu()
        y = self._sums.sum(0).cpu() - n * own.double().cpu()
        self._moments += torch.outer(y, d) + torch.outer(d, y) + n * torch.outer(d, d)
        parallel.add_up([self._sums, self._counts, self._moments])

    def token_mean(self) -> TokenMean:
        """The token-mean predictor."""
        mean = self._sums.sum(0) / self._counts.sum().clamp_min(1)
        seen = self._counts > 0
        by_token = torch.where(seen[:, None], self._sums / self._counts.clamp_min(1)[:, None], mean)
        return TokenMean(mean.float(), by_token.float())

    def moments(self) -> Moments:
        """Mean and covariance."""
        n = self._counts.sum().double().cpu().clamp_min(1)
        mean = self._sums.sum(0).double().cpu() / n
        shift = mean if self._empty else mean - self._origin.double().cpu()
        return Moments(mean, self._moments / n - torch.outer(shift, shift))

    def pca(self, k: int) -> PCA:
        """The projection on the first k principal components."""
        law, device = self.moments(), self._sums.device
        directions = law.directions[: min(k, len(law.mean))]
        return PCA(law.mean.float().to(device), directions.float().contiguous().to(device))
