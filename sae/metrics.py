"""How good a reconstruction is, and what cheap predictors reach. Accumulators give frozen results.

FVU is sum ||x - x_hat||^2 / sum ||x - mean(x)||^2 with the vector mean over the evaluated tokens: lower is better, 1 is
what the mean itself reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Over the evaluated tokens."""

    fvu: float
    cosine: float
    n_tokens: int


class ReconstructionCounter:
    """Accumulates reconstruction errors over batches, in float64."""

    def __init__(self, d_in: int) -> None:
        self._error = self._squares = self._cosine = 0.0
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._n = 0

    def update(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add inputs and their reconstructions, both [token, d_in]."""
        self._error += float((x - reconstruction).square().sum(dtype=torch.float64))
        self._squares += float(x.square().sum(dtype=torch.float64))
        self._cosine += float(torch.cosine_similarity(x, reconstruction, dim=-1).sum(dtype=torch.float64))
        self._sum += x.sum(0, dtype=torch.float64).cpu()
        self._n += len(x)

    def result(self) -> ReconstructionMetrics:
        """The metrics; FVU is nan when the inputs do not vary."""
        n = max(self._n, 1)
        variance = self._squares - float(self._sum.square().sum()) / n
        fvu = self._error / variance if variance > 1e-12 * max(self._squares, 1.0) else float("nan")
        return ReconstructionMetrics(fvu, self._cosine / n, self._n)


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
    """[k, d_in], orthonormal."""

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


class BaselineFitter:
    """Accumulates what the token-mean and the PCA baseline need, over the vectors that the dictionary is trained on."""

    def __init__(self, vocabulary: int, d_in: int, device: torch.device) -> None:
        # A frequent token comes millions of times: float32 would stop counting at 2^24.
        self._sums = torch.zeros(vocabulary, d_in, device=device, dtype=torch.float64)
        self._counts = torch.zeros(vocabulary, device=device, dtype=torch.int64)
        # Float64 on the CPU: a residual stream has directions whose variance is a millionth of the largest.
        self._moments = torch.zeros(d_in, d_in, dtype=torch.float64)

    def update(self, x: Tensor, token_ids: Tensor) -> None:
        """Add vectors [token, d_in] and their tokens [token]."""
        token_ids = token_ids.to(x.device)
        self._sums.index_add_(0, token_ids, x.double())
        self._counts += torch.bincount(token_ids, minlength=len(self._counts))
        self._moments += (x.T @ x).double().cpu()

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
        return Moments(mean, self._moments / n - torch.outer(mean, mean))

    def pca(self, k: int) -> PCA:
        """The projection on the first k principal components."""
        law, device = self.moments(), self._sums.device
        directions = law.directions[: min(k, len(law.mean))]
        return PCA(law.mean.float().to(device), directions.float().contiguous().to(device))
