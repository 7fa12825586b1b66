"""The C library's allocator and oneDNN, told what to keep for the next tensor and what not."""

from __future__ import annotations

import contextlib
import ctypes
import os
from functools import cache

import torch

from sae.arithmetic import screen_dtype

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30
GROWN_BYTES = 128 << 20
"""By so much the heap may grow until what is free in it is given back."""
KEPT_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


class _Heap(ctypes.Structure):
    """glibc's mallinfo2, whose first number is the bytes of the heap."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", *"bcdefghij")]


class Heap:
    """The C library's heap, of which the free parts go back to the system when it has grown.

    Freed memory is kept for the next tensor (`keep_freed_memory`). In some processes, by chance, small allocations come
    to lie so that what a batch frees does not fit the next one: the heap then grows with every batch, 9 GB after 1.9M
    tokens, of which 0.2 GB are in use. Does nothing on other C libraries.
    """

    def __init__(self) -> None:
        self._size = self._bytes()

    def look(self) -> None:
        """Give back what is free, if the heap has grown since the last time."""
        if self._bytes() - self._size > GROWN_BYTES:
            _libc().malloc_trim(0)
            self._size = self._bytes()

    @staticmethod
    def _bytes() -> int:
        try:
            ask = _libc().mallinfo2
        except (OSError, AttributeError):
            return 0
        ask.restype = _Heap
        return int(ask().arena)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")


def keep_freed_memory() -> None:
    """Stop glibc from returning every large tensor to the system when it is freed.

    By default each intermediate result of a forward pass is mapped, faulted in page by page, and unmapped again; on a
    virtual machine that costs several times the arithmetic. Does nothing on other C libraries.

    oneDNN, which does torch's products, is told to keep nothing of a product for the next one of the same shape:
    batches of contexts have ever new shapes, and on a processor with AVX2 up to a thousand of them keep megabytes each
    (6 GB after 1.5M tokens). Where bfloat16 products are fast, memory stayed below 1 GB with what is kept: there it is
    left alone. Works before the first product, and unless the user has set `ONEDNN_PRIMITIVE_CACHE_CAPACITY`.
    """
    with contextlib.suppress(OSError, AttributeError):
        _libc().mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        _libc().mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    if screen_dtype(torch.device("cpu")) == torch.float32:
        os.environ.setdefault(KEPT_PRODUCTS, "0")
