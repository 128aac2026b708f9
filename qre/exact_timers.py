"""An event loop that is late by microseconds: epoll, by which asyncio waits, counts milliseconds and is late by up to
one. What leaves a server at a time that was recorded at a site has to leave then, and what only has to be passed on
leaves as soon as it has come: between its arrival and who reads it lies one system call, and nothing of asyncio."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import selectors
import time
from collections.abc import Callable
from typing import Final

#: Descriptors that become readable at once, of those that are read first; what is left over waits for the next turn.
_AT_ONCE: Final = 8
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    """struct timespec of clock_gettime(2)."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2)."""

    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class ExactSelector(selectors.EpollSelector):
    """Waits by epoll without a time, and is woken by a timer (timerfd_create(2)) that counts nanoseconds: it is set
    before the wait, so nothing is left to do after it. ``failed`` is told what a first reader raises."""

    def __init__(self, failed: Callable[[Exception], None] | None = None) -> None:
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
        self._failed = failed
        self._readers: dict[int, Callable[[], None]] = {}
        #: Made with the first reader: of its descriptor, and of all others in one.
        self._first: select.epoll | None = None

    def add_first(self, fd: int, reader: Callable[[], None]) -> None:
        """Call ``reader`` whenever ``fd`` is readable, before anything else, while ``select`` waits."""
        if self._first is None:
            self._first = select.epoll()
            self._first.register(self.fileno(), select.EPOLLIN)
        self._first.register(fd, select.EPOLLIN)
        self._readers[fd] = reader

    def remove_first(self, fd: int) -> None:
        """No longer; call it before ``fd`` is closed."""
        if self._readers.pop(fd, None) is not None and self._first is not None:
            self._first.unregister(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class; ``timeout`` in seconds. Returns as well when a first reader was called."""
        if timeout is not None and timeout > 0:
            self._wake_in(max(1, round(timeout * 1e9)))
            timeout = None
        elif self._set and timeout is None:
            self._wake_in(0)
        if not self._readers or self._first is None:
            return super().select(timeout)
        others = False
        for fd, _ in self._first.poll(None if timeout is None else 0, _AT_ONCE):
            reader = self._readers.get(fd)
            if reader is None:
                others = True
                continue
            try:
                reader()
            except Exception as error:
                if self._failed is None:
                    raise
                self._failed(error)
        return super().select(0) if others else []

    def _wake_in(self, nanoseconds: int) -> None:
        """Once; 0: not at all. What the timer has reported is forgotten."""
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        _libc.timerfd_settime(self._timer, 0, ctypes.byref(self._spec), None)
        self._set = nanoseconds > 0

    def close(self) -> None:
        """As the base class."""
        super().close()
        if self._first is not None:
            self._first.close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1


class ExactLoop(asyncio.SelectorEventLoop):
    """With readers that come first: for descriptors of which every microsecond can be seen outside."""

    def __init__(self) -> None:
        self._exact = ExactSelector(self._first_reader_failed)
        super().__init__(self._exact)

    def add_first_reader(self, fd: int, reader: Callable[[], None]) -> None:
        """As ``add_reader``, but that ``reader`` is called before everything that is ready."""
        self._exact.add_first(fd, reader)

    def remove_first_reader(self, fd: int) -> None:
        """As ``remove_reader``."""
        self._exact.remove_first(fd)

    def _first_reader_failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "a first reader failed", "exception": error})


def exact_loop() -> ExactLoop:
    """A new event loop; for ``asyncio.Runner``."""
    return ExactLoop()


def add_first_reader(fd: int, reader: Callable[[], None]) -> None:
    """``ExactLoop.add_first_reader`` of the running loop; of a loop of another kind ``add_reader``."""
    loop = asyncio.get_running_loop()
    (loop.add_first_reader if isinstance(loop, ExactLoop) else loop.add_reader)(fd, reader)


def remove_first_reader(fd: int) -> None:
    """The reverse; call it before ``fd`` is closed."""
    loop = asyncio.get_running_loop()
    (loop.remove_first_reader if isinstance(loop, ExactLoop) else loop.remove_reader)(fd)
