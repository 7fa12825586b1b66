"""The decomposition of the layer's variance: oracle T6, and cases whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sae.layers import LayerVariance, layer_variance

RNG = np.random.default_rng(0)
SPARSE = RNG.random((6, 40, 30)) * (RNG.random((6, 40, 30)) < 0.2)


def _values(found: LayerVariance) -> tuple[float, float, float]:
    return found.total, found.within_latent, found.within_token


def test_worked_numbers() -> None:
    # Latent 0 at layers 0 and 2 on token 0; latent 1 at layer 1 on both tokens.
    h = np.zeros((3, 2, 2))
    h[0, 0, 0] = h[2, 0, 0] = 1
    h[1, :, 1] = 1
    found = layer_variance(h)
    assert _values(found) == pytest.approx((0.5, 0.5, 0.5))
    # The same latent at layer 0 on one token and at layer 2 on the other: all its variance is drift.
    h[2, 0, 0], h[2, 1, 0] = 0, 1
    moved = layer_variance(h)
    assert _values(moved) == pytest.approx((0.5, 0.5, 0.0)) and moved.drift == pytest.approx(1)


def test_the_parts_are_ordered() -> None:
    total, latent, token = _values(layer_variance(SPARSE))
    assert 0 < token < latent < total


@pytest.mark.parametrize("origin", [10.0, -3.0, 1e6])
def test_renaming_the_layers_changes_nothing(origin: float) -> None:
    moved = layer_variance(SPARSE, np.arange(6) + origin)
    assert _values(moved) == pytest.approx(_values(layer_variance(SPARSE)), rel=1e-9)


def test_repeating_the_tokens_changes_nothing() -> None:
    assert _values(layer_variance(np.tile(SPARSE, (1, 3, 1)))) == pytest.approx(_values(layer_variance(SPARSE)))


def test_latents_that_share_one_profile_differ_in_nothing() -> None:
    profile = np.array([1.0, 2, 3, 0, 1, 0])[:, None, None]
    found = layer_variance(profile * SPARSE[0])
    assert found.within_latent == pytest.approx(found.total) and found.between_latents == pytest.approx(0)
    assert found.within_token == pytest.approx(found.total) and found.drift == pytest.approx(0)


def test_latents_of_one_layer_each_have_no_variance_of_their_own() -> None:
    h = np.zeros((6, 40, 30))
    h[np.arange(30) % 6, :, np.arange(30)] = 1
    assert layer_variance(h).within_latent == 0 and layer_variance(h).between_latents == 1


def test_nothing_active_is_undefined_and_negative_activations_are_refused() -> None:
    assert all(map(math.isnan, _values(layer_variance(np.zeros((2, 3, 4))))))
    with pytest.raises(ValueError, match="not negative"):
        layer_variance(-SPARSE)
