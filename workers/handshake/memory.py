"""Gives memory back to the kernel after a flood: the C library keeps what was freed unless it is asked.

malloc_trim(3); a C library that lacks it keeps what it has.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: Flows that must have been there, and the part of them that may be left, before it is worth while.
_MANY: Final = 512
_FEW: Final = 8

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class HighWater:
    """Watches how many flows there are; trims when a flood is over."""

    def __init__(self) -> None:
        self._highest = 0

    def seen(self, flows: int) -> bool:
        """Call it after flows went; whether memory was given back."""
        self._highest = max(self._highest, flows)
        if self._highest < _MANY or flows > self._highest // _FEW:
            return False
        self._highest = flows
        if _trim is not None:
            _trim(ctypes.c_size_t(0))
        return True
