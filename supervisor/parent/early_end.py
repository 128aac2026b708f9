"""Signals to end while a daemon starts: an exception, so that the steps done so far are undone, and a note of it.

The exception alone is not enough. A handler runs between two instructions of Python, wherever that is, and what it
raises is lost where C code has called that Python: in an import that an extension module makes, in a callback of the
garbage collector or of a weak reference. A daemon that lost it would run on as if nobody had asked it to end.

SIGUSR1 is the same from a manager that is about to start another daemon of the profile (RestartKillSignal=).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class TerminatedError(BaseException):
    """A signal to end while the daemon was still starting."""


def _say_unless_expected(unraisable: sys.UnraisableHookArgs) -> None:
    """An exception that is lost is printed with its traceback; of this one ``wanted`` knows."""
    if not isinstance(unraisable.exc_value, TerminatedError):
        sys.__unraisablehook__(unraisable)


class EarlyEnd:
    """``wanted``: a signal came. Look at it when signals are handled otherwise. ``another_follows``: it was the one
    that says so, then or later."""

    def __init__(self) -> None:
        self.wanted = self.another_follows = False

    def listen(self) -> None:
        """From now on these signals raise TerminatedError, the first of them."""
        for number in ENDING:
            signal.signal(number, self._terminate)

        sys.unraisablehook = _say_unless_expected

    def is_over(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
        """From now on these signals call ``stop``."""
        for number in ENDING:
            loop.add_signal_handler(number, self._end, number, stop)

    def _end(self, number: int, stop: Callable[[], None]) -> None:
        self.another_follows |= number == signal.SIGUSR1
        stop()

    def _terminate(self, number: int, frame: object) -> NoReturn:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # the undoing is not interrupted again
        self.wanted = True
        self.another_follows = number == signal.SIGUSR1
        raise TerminatedError


def run_in_whole_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """``asyncio.run``, where a signal waits until the loop is made: one that is half made complains when it goes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with asyncio.Runner() as runner:
            runner.get_loop()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            runner.run(main())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
