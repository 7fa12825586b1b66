"""Reconstruction metrics and the two baselines beside them."""

from __future__ import annotations

import math

import pytest
import torch

from sae.metrics import BaselineFitter, ReconstructionCounter


def _fvu(x: torch.Tensor, guess: torch.Tensor) -> float:
    counter = ReconstructionCounter(x.shape[1])
    for first in range(0, len(x), 7):
        counter.update(x[first : first + 7], guess[first : first + 7])
    return counter.result().fvu


def test_fvu_is_one_for_the_mean_and_zero_for_the_truth() -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)) + 10
    assert _fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1, abs=1e-5)
    assert _fvu(x, x) == 0


def test_fvu_of_a_worked_example() -> None:
    # Mean (1, 1): variance 4 * 1 = 4 ... errors 1 + 1 = 2.
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
    guess = x.clone()
    guess[0, 0], guess[2, 1] = 1.0, 1.0
    assert _fvu(x, guess) == pytest.approx(2 / 4)


def test_fvu_of_constant_inputs_is_undefined() -> None:
    x = torch.ones(10, 3)
    assert math.isnan(_fvu(x, x * 0))


def test_the_token_mean_predicts_what_depends_on_the_token_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(20, 6, generator=generator)
    tokens = torch.randint(15, (400,), generator=generator)
    fitter = BaselineFitter(20, 6, torch.device("cpu"))
    fitter.update(table[tokens[:300]], tokens[:300])
    fitter.update(table[tokens[300:]], tokens[300:])
    lookup = fitter.token_mean()
    torch.testing.assert_close(lookup.predict(tokens), table[tokens])
    # Tokens 15 to 19 never came: the overall mean.
    torch.testing.assert_close(lookup.predict(torch.tensor([17]))[0], table[tokens].mean(0))


def test_pca_of_k_directions_leaves_the_variance_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    x = torch.randn(20000, 4, generator=generator) * torch.tensor([4.0, 2.0, 1.0, 0.5]) @ rotation + 5
    fitter = BaselineFitter(1, 4, torch.device("cpu"))
    fitter.update(x, torch.zeros(len(x), dtype=torch.int64))
    assert _fvu(x, fitter.pca(2).predict(x)) == pytest.approx(1.25 / 21.25, rel=0.05)
    torch.testing.assert_close(fitter.pca(99).predict(x), x, rtol=1e-3, atol=1e-3)


def test_a_token_that_comes_very_often_is_still_counted() -> None:
    fitter = BaselineFitter(2, 1, torch.device("cpu"))
    # As if 2^24 occurrences had been seen: in float32 one more would be lost.
    fitter._counts[0], fitter._sums[0, 0] = 2**24, 2.0**24
    fitter.update(torch.full((3, 1), 1.0), torch.zeros(3, dtype=torch.int64))
    assert int(fitter._counts[0]) == 2**24 + 3
    assert float(fitter._sums[0, 0]) == 2**24 + 3
