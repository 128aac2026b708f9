"""A client's wait between two attempts, which ends early when the network or the resolver's files have changed, or
when the clock was set and may have been what was wrong.

How long the backoff had grown says nothing about a network that is another one now, nor about another time. Still
bounded: a network that changes all the time does not make a client knock all the time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Final

from qre.ipc.roles import RESOLVER_FILES

#: From a change to the attempt (seconds): an address comes first, its routes and name servers a moment later.
_SETTLING: Final = 0.2
#: From one attempt's end to one that was woken: at first, and when many were in the last minute.
_GAP, _LONG_GAP, _MANY, _WINDOW = 0.5, 5.0, 10, 60.0
#: How often the resolver's files are looked at (seconds).
_INTERVAL: Final = 0.5
#: A clock that was set has gone on by so many seconds more or less than time itself; no slewing comes to that.
_JUMP: Final = 5.0
_NEVER: Final = float("-inf")


class EarlyAttempt:
    """``began`` at each attempt, ``changed`` when something has changed, ``wait`` instead of a sleep."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._changed_at = self._wanted_at = self._clock_set_at = _NEVER
        self._clock = _clock()
        self._resolver = _signature()
        self._news = asyncio.Event()
        self._woken: deque[float] = deque(maxlen=_MANY)

    def began(self) -> None:
        """An attempt begins: what changes from now on may be what it lacks."""
        self._began_at = time.monotonic()
        self._resolver, self._clock = _signature(), _clock()

    def changed(self) -> None:
        """Addresses, routes or links have changed."""
        self._changed_at = time.monotonic()
        self._news.set()

    def wanted(self) -> None:
        """The user has changed something."""
        self._wanted_at = time.monotonic()
        self._news.set()

    async def wait(self, pause: float, *, any_network: bool = True, clock: bool = False) -> bool:
        """Wait for ``pause`` seconds, or until shortly after a change since the attempt began: True. Not
        ``any_network``: only what the user has changed counts; ``clock``: that the clock was set, too."""
        ended = time.monotonic()
        many = len(self._woken) == _MANY and ended - self._woken[0] < _WINDOW
        earliest = ended + (_LONG_GAP if many else _GAP)
        while True:
            if _signature() != self._resolver:
                self._resolver = _signature()
                self.changed()
            if abs(_clock() - self._clock) > _JUMP:
                self._clock, self._clock_set_at = _clock(), time.monotonic()
            changed_at = max(
                self._wanted_at,
                self._changed_at if any_network else _NEVER,
                self._clock_set_at if clock else _NEVER,
            )
            woken = changed_at >= self._began_at
            until = min(ended + pause, max(changed_at + _SETTLING, earliest)) if woken else ended + pause
            left = until - time.monotonic()
            if left <= 0:
                if woken and until < ended + pause:
                    self._woken.append(time.monotonic())
                    return True
                return False
            self._news.clear()
            try:
                async with asyncio.timeout(min(left, _INTERVAL)):
                    await self._news.wait()
            except TimeoutError:
                pass


def _clock() -> float:
    """By how much the clock is ahead of the time since this machine was started, sleep included; a constant but for
    who sets the clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


#: Device, inode and time of change of a file; None: there is none.
_Version = tuple[int, int, int] | None


def _signature() -> tuple[_Version, ...]:
    """Changes when one of the resolver's files does: replaced, rewritten, linked to elsewhere, made or removed."""
    found: list[_Version] = []
    for path in RESOLVER_FILES:
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns))
    return tuple(found)
