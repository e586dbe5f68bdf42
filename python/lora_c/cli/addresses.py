"""What threads would take of the C library's malloc without a use for it: addresses, and memory that others gave back."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_ARENA_MAX = -8  # malloc.h of glibc


def keep_addresses() -> bool:
    """Where addresses are bounded, let all threads allocate from one arena; return whether that was done.

    glibc reserves 64 MiB of addresses for each thread that allocates, and keeps them when it ends: a search with several
    runs would end with fewer than its first run had, and than its forecast counts on.
    """
    from ..files.system import resource

    if (
        resource is None
        or not sys.platform.startswith("linux")
        or resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    ):
        return False
    return share_one_arena()


def share_one_arena() -> bool:
    """Let all threads allocate from one arena; return whether that was done.

    With one for each thread, what one thread has given back is no use to the others, and a process of many threads that runs
    for days grows to the most that each of them ever had.
    """
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False
