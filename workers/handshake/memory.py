"""Returns memory to the kernel after a flood: the C library keeps freed memory unless it is asked.

malloc_trim(3); a C library that lacks it keeps what it has.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: The number of flows, and the part of them that may remain, from which trimming is worth while.
_MANY: Final = 512
_FEW: Final = 8

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class HighWater:
    """Watches how many flows there are; trims when a flood is over."""

    def __init__(self) -> None:
        self._highest = 0

    def seen(self, flows: int) -> bool:
        """Call it after flows were removed. Whether memory was returned."""
        self._highest = max(self._highest, flows)
        if self._highest < _MANY or flows > self._highest // _FEW:
            return False
        self._highest = flows
        if _trim is not None:
            _trim(ctypes.c_size_t(0))
        return True
