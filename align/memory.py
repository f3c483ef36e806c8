"""Memory of the process: how much it took, and that what is freed stays in it.

Tensors of the same sizes are allocated again in every frame and every step. Left alone, glibc returns large blocks to
the system at once and the kernel clears them anew at every allocation: on a small virtual machine that was half of the
time of a rollout.
"""

from __future__ import annotations

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


def keep_memory() -> bool:
    """Tell glibc so; False where there is no glibc. Call before the first large allocation."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**26))
        return all(libc.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):  # another C library
        return False


def peak_memory() -> int:
    """Bytes of the most memory that this process has held at one time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
