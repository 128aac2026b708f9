"""SIGTERM, SIGINT and SIGHUP for a command in the foreground: recorded and waited for, so that none interrupts a
step.

A signal that arrives during the set-up takes effect when the command begins to wait. SIGHUP that was ignored when
the command started (nohup) stays ignored.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType, TracebackType
from typing import Final, Self

_LONGEST_WAIT: Final = 3600.0  # of one poll(2), which takes milliseconds as an int


class EndSignals:
    """A context manager; afterwards signals do what they did before."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.getsignal(number)
            if number != signal.SIGHUP or before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        try:
            os.write(self._write, b"x")
        except BlockingIOError:
            return  # the pipe is full: the signal is recorded already

    def fileno(self) -> int:
        """Readable once a signal has come."""
        return self._read

    def wait(self, seconds: float | None) -> bool:
        """Wait for a signal (True), at most this many seconds (False); None: without limit."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.received:
            left = _LONGEST_WAIT if deadline is None else min(_LONGEST_WAIT, deadline - time.monotonic())
            if left <= 0:
                return False
            select.select([self._read], [], [], left)
        return True
