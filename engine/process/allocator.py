"""Let the C library keep freed memory.

glibc returns every large block to the kernel when it is freed and requests a new one, page by page,
at the next allocation: hundreds of megabytes of feature maps in every training step. On large
images that costs more than some of the layers (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h; a threshold of 2 GiB is the largest that mallopt takes.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER_TRIM = 2**31 - 1

# User settings of the allocator; if any is set, nothing is changed.
USER_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "LD_PRELOAD",
)


def keep_freed_memory() -> bool:
    """Reuse freed blocks instead of returning them to the kernel, for this process and its forks.

    Returns:
        Whether it was done: not without glibc, nor if the environment configures the allocator
        (``MALLOC_…_``, or another allocator in ``LD_PRELOAD``).
    """
    if any(os.environ.get(name) for name in USER_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER_TRIM))
