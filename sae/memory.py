"""The C library's allocator, told to keep freed memory for the next tensor."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Stop glibc from returning every large tensor to the system when it is freed.

    By default each intermediate result of a forward pass is mapped, faulted in page by page, and unmapped again; on a
    virtual machine that costs several times the arithmetic. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
