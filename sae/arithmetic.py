"""Which arithmetic a device is fast at, and what it may round."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cache

import torch


@cache
def screen_dtype(device: torch.device) -> torch.dtype:
    """The arithmetic of the cheap product on a device: bfloat16 where that is the faster one, else float32.

    Not every processor that has instructions for bfloat16 gains by them; a small product of each tells. The result of
    the selection is the same.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if 1.2 * _product_seconds(torch.bfloat16) < _product_seconds(torch.float32) else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """The shortest of some products of a few hundred rows."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, right.T)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextlib.contextmanager
def float32_sums() -> Iterator[None]:
    """Without what CUDA may do by default: round partial sums of a bfloat16 product, which no bound here allows for."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_bf16_reduced_precision_reduction = before
