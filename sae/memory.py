"""The C library's allocator and oneDNN, told what to keep for the next tensor and what not."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

from sae.arithmetic import screen_dtype

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30
KEPT_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


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
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    if screen_dtype(torch.device("cpu")) == torch.float32:
        os.environ.setdefault(KEPT_PRODUCTS, "0")
