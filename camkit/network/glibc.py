"""Memory of the CPU: keep what tensors give back, for the next ones."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER_TRIM, LARGEST_HEAP_BLOCK = -1, 1 << 30


def keep_freed_memory() -> None:
    """Have the C library reuse freed blocks (of up to 1 GiB) instead of returning them to the system.

    By default glibc returns every large tensor's memory when the tensor goes, and the next layer's output
    gets fresh pages, which the kernel has to clear: on a small network that takes as long as the network
    itself. Affects the whole process. Nothing happens on systems whose C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
    mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
