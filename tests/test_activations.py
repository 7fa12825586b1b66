"""Streams of activations: which positions come, and the shuffle buffer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sae.activations import ActivationBatch, shuffled, stream
from sae.config import SubjectConfig
from sae.contexts import Batch, ContextStore
from sae.hookpoints import Hookpoint
from sae.subject import load_subject

EMPTY = Batch(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _numbered(first: int, n: int) -> ActivationBatch:
    """A batch whose vectors are their own numbers, negated in the second layer."""
    x = torch.arange(first, first + n, dtype=torch.float32)[:, None]
    return ActivationBatch((x, -x), torch.zeros(n, dtype=torch.int64), EMPTY, torch.zeros(0))


def test_every_vector_comes_once_with_its_layers_aligned() -> None:
    batches = list(shuffled((_numbered(i, 37) for i in range(0, 37 * 40, 37)), 16, 128, torch.Generator()))
    assert {len(b[0]) for b in batches[:-1]} == {16}
    assert all(torch.equal(a, -b) for a, b in batches)
    assert sorted(torch.cat([a for a, _ in batches]).flatten().tolist()) == list(range(37 * 40))


def test_the_buffer_mixes_vectors_over_its_size_and_the_seed_decides_how() -> None:
    def order(seed: int) -> list[float]:
        parts = (_numbered(i, 10) for i in range(0, 4000, 10))
        mixed = shuffled(parts, 10, 1000, torch.Generator().manual_seed(seed))
        return torch.cat([a for a, _ in mixed]).flatten().tolist()

    assert order(0) == order(0) != order(1)
    spread = np.std(order(0)[:10])
    # Ten uniform draws from the first thousand numbers have a standard deviation near 289.
    assert 120 < spread < 450


def test_first_positions_and_padding_are_left_out(neox_folder: Path) -> None:
    lengths = [9, 12, 8]
    tokens = np.arange(10, 10 + sum(lengths)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    store = ContextStore(tokens, offsets, np.zeros(3, np.int32), np.zeros(3, np.int32), ["a"])
    subject = load_subject(SubjectConfig(str(neox_folder)))
    (batch,) = stream(subject, store, [Hookpoint(0), Hookpoint(1, "mlp")], [store.batch(np.array([0, 1, 2]))])
    expected = np.concatenate([tokens[a + 1 : b] for a, b in pairwise(offsets)])
    assert batch.token_ids.tolist() == expected.tolist()
    assert [x.shape for x in batch.vectors] == [(len(expected), 32)] * 2
