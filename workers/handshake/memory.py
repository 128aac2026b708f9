"""Memory that is not needed any more: what held secrets is freed, and thereby wiped, soon; a flood's is returned.

This worker overwrites what it frees (``qre.ipc.sandbox.starting``), but a handshake's objects refer to each other,
and the garbage collector alone frees them.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

from qre.freed_memory import give_back

#: The number of flows, and the part of them that may remain, from which trimming is worth while.
_MANY: Final = 512
_FEW: Final = 8

#: Seconds after the end of a handshake or a session.
_SOON: Final = 1.0


class Forgetting:
    """Frees what handshakes and sessions have left, at most once a second. What there is at the start stays, and is
    not looked through again: it is most of what a worker has."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        self._due: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Something with secrets has ended."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_SOON, self._collect)

    def _collect(self) -> None:
        self._due = None
        gc.collect()
        give_back()


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
        give_back()
        return True
