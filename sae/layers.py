"""How latents are spread over layers: the exact decomposition of the variance of the layer. Imports no torch.

The quantities are those of Lawson et al., arXiv 2409.04185, as probabilities that sum to one; estimators that put zeros
in the place of probabilities of tokens without activation are not variances, since they depend on the layers' numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class LayerVariance:
    """Variances of the layer L under P(layer, token, latent), proportional to activation; in squared layers.

    By the law of total variance 0 <= within_token <= within_latent <= total. All are nan where nothing is active.
    """

    total: float
    """Var(L)."""
    within_latent: float
    """E Var(L | latent)."""
    within_token: float
    """E Var(L | latent, token)."""

    @property
    def between_latents(self) -> float:
        """Share of the total that lies between latents: 1 if each lives at one layer."""
        return 1 - self.within_latent / self.total

    @property
    def drift(self) -> float:
        """Share of a latent's own variance that lies between tokens: its layers change from token to token."""
        return (self.within_latent - self.within_token) / self.within_latent


def layer_variance(activations: Floats, layers: npt.ArrayLike | None = None) -> LayerVariance:
    """The decomposition for activations [layer, token, latent], none of them negative.

    Args:
        activations: how strongly each latent fires on each token at each layer.
        layers: numbers of the layers [layer]; by default counted from zero. Only their distances matter.

    Raises:
        ValueError: activations are not [layer, token, latent], or some are negative.
    """
    h = np.asarray(activations, float)
    if h.ndim != 3 or (h < 0).any():
        raise ValueError(f"activations are [layer, token, latent] and not negative, found shape {h.shape}")
    place = np.arange(len(h), dtype=float) if layers is None else np.asarray(layers, float)
    mass = h.sum()
    if not mass:
        return LayerVariance(float("nan"), float("nan"), float("nan"))
    # From the mean, so that a large origin costs no digits.
    place = place - (place @ h.sum((1, 2))) / mass
    return LayerVariance(*(_mean_variance(place, h.sum(over)) / mass for over in ((1, 2), (1,), ())))


def _mean_variance(place: Floats, h: Floats) -> float:
    """Sum over all but the first axis of mass times the variance of the place within."""
    h = h.reshape(len(h), -1)
    mass = h.sum(0)
    h, mass = h[:, mass > 0], mass[mass > 0]
    mean = place @ h / mass
    return float((h * (place[:, None] - mean) ** 2).sum())
