"""Memory that a step frees and the next one asks for again."""

import ctypes
import sys

# malloc.h of the GNU C library
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what tensors free, up to 2 GiB, for the next ones.

    The C library would give large blocks back at once, and every step would spend about a tenth
    of its time on the page faults of getting them again. Elsewhere than in glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)
