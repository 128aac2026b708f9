"""An event loop that is late by microseconds: epoll, by which asyncio waits, counts milliseconds and is late by up to
one. What leaves a server at a time that was recorded at a site has to leave then, and what waits for nothing but to
be passed on leaves as soon as it has come: between its arrival and the loop lies one system call."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import selectors
import time

_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    """struct timespec of clock_gettime(2)."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class ExactSelector(selectors.EpollSelector):
    """Waits by epoll without a time, and is woken by a timer (timerfd_create(2)) that counts nanoseconds: it is set
    before the wait, so nothing is left to do after it."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            error = OSError(ctypes.get_errno(), "timerfd_create")
            super().close()
            raise error
        with select.epoll.fromfd(os.dup(self.fileno())) as same:  # without a key, for which ``select`` would return
            same.register(self._timer, select.EPOLLIN | select.EPOLLET)
        self._spec = _TimerSpec()
        self._set = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class; ``timeout`` in seconds."""
        if timeout is not None and timeout > 0:
            self._wake_in(max(1, round(timeout * 1e9)))
            timeout = None
        elif self._set and timeout is None:
            self._wake_in(0)
        return super().select(timeout)

    def _wake_in(self, nanoseconds: int) -> None:
        """Once; 0: not at all. What the timer has reported is forgotten."""
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        _libc.timerfd_settime(self._timer, 0, ctypes.byref(self._spec), None)
        self._set = nanoseconds > 0

    def close(self) -> None:
        """As the base class."""
        super().close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1


def exact_loop() -> asyncio.AbstractEventLoop:
    """A new event loop; for ``asyncio.Runner``."""
    return asyncio.SelectorEventLoop(ExactSelector())
