"""Keeps the memory that a training step frees, for the next step."""

import ctypes
import sys

# malloc.h of the GNU C library
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep up to 2 GiB of freed memory for the next tensors.

    The C library would return large blocks to the system at once, and every step would spend about
    a tenth of its time on page faults to get them again. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)
