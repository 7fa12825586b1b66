"""What the libraries below torch are told about memory."""

from __future__ import annotations

import os

import pytest
import torch

from sae import memory
from sae.memory import KEPT_PRODUCTS, keep_freed_memory


@pytest.mark.parametrize(("screen", "expected"), [(torch.float32, "0"), (torch.bfloat16, None)])
def test_products_of_ever_new_shapes_are_kept_only_where_they_are_small(
    screen: torch.dtype, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEPT_PRODUCTS, "is put back afterwards")
    monkeypatch.delenv(KEPT_PRODUCTS)
    monkeypatch.setattr(memory, "screen_dtype", lambda device: screen)
    keep_freed_memory()
    assert os.environ.get(KEPT_PRODUCTS) == expected


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT_PRODUCTS, "7")
    monkeypatch.setattr(memory, "screen_dtype", lambda device: torch.float32)
    keep_freed_memory()
    assert os.environ[KEPT_PRODUCTS] == "7"
