"""An event loop that is late by microseconds: epoll, by which asyncio waits, counts milliseconds and is late by up to
one. What leaves a server at a time that was recorded at a site has to leave then."""

from __future__ import annotations

import asyncio
import ctypes
import select
import selectors

_libc = ctypes.CDLL(None)


class _PollFd(ctypes.Structure):
    """struct pollfd of poll(2)."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _TimeSpec(ctypes.Structure):
    """struct timespec of clock_gettime(2)."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class ExactSelector(selectors.EpollSelector):
    """Waits by ppoll(2), for the one descriptor of epoll: that counts nanoseconds. Not by select(2), for which Python
    has large arrays on the stack: what a function before it left there would stay for as long as it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._waited = _PollFd(self.fileno(), select.POLLIN)
        self._for = _TimeSpec()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class; ``timeout`` in seconds."""
        if timeout is not None and timeout > 0:
            self._for.seconds, rest = divmod(round(timeout * 1e9), 1_000_000_000)
            self._for.nanoseconds = rest
            if _libc.ppoll(ctypes.byref(self._waited), ctypes.c_ulong(1), ctypes.byref(self._for), None) <= 0:
                return []  # its time is over, or a signal came, of which asyncio is told by a descriptor
            timeout = 0
        return super().select(timeout)


def exact_loop() -> asyncio.AbstractEventLoop:
    """A new event loop; for ``asyncio.Runner``."""
    return asyncio.SelectorEventLoop(ExactSelector())
