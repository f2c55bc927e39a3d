"""Keeps the memory of freed tensors in this process.

By default, the C library returns the memory of a large tensor to the kernel when the tensor is freed. The next tensor
of that size then costs a page fault per 4 KiB, which took 3 % of the prefill of 512 tokens with log-probs
(benchmarks/log_probs.py).
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT = 32 << 20  # bytes of a tensor; that of a larger one is returned to the kernel
_KEPT = 64 << 20  # bytes at the end of the heap


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of freed memory. Does nothing where the C library has no such setting."""
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
