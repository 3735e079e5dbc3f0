"""glibc's allocator of memory, which a training on a CPU asks for gigabytes in each step."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
LARGEST = 32 * 2**20  # the highest MMAP_THRESHOLD that glibc takes: larger blocks always go back to the system


def keep_freed_memory() -> None:
    """Keep up to 2 GiB of freed memory for the next step; the system would have to clear it for each.

    MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES and the like in the environment come first. Without effect where the C
    library is another, or another allocator is loaded.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(MMAP_THRESHOLD, LARGEST)  # by default the thresholds change with the sizes of freed blocks
        glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
