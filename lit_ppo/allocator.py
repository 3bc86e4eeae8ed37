"""Memory that is freed stays with the process, since the next update needs it again.

glibc gives large pieces of freed memory back to the kernel, which then has to clear the same pages again and again: thousands
of page faults in each update. mallopt(3) and its limits: https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import ctypes
from typing import Final

# From <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_MMAP_THRESHOLD: Final = 32 << 20  # glibc refuses more
_KEPT_BYTES: Final = 256 << 20


def keep_freed_memory() -> bool:
    """Let the process keep up to 256 MiB that it has freed; returns whether the C library can do so (musl cannot).

    It holds for the whole process, so only the command line calls it: a program that uses `lit_ppo` as a library decides
    for itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
