"""What the C library keeps of memory that was freed. One that lacks these functions keeps what it has."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None)
_trim, _set = (getattr(_libc, name, None) for name in ("malloc_trim", "mallopt"))


def keep_one_arena() -> None:
    """From now on all threads allocate from one place (mallopt(3)): those of ZeroMQ do it rarely."""
    if _set is not None:
        _set(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))


def give_back() -> None:
    """Memory that was freed goes back to the kernel (malloc_trim(3)); takes some tens of microseconds."""
    if _trim is not None:
        _trim(ctypes.c_size_t(0))
