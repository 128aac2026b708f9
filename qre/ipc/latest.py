"""Passes on the latest value, at most once an interval, so that no worker floods another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """``tell`` gets the first value at once, then the latest of each ``interval`` (seconds); none twice in a row."""

    def __init__(self, tell: Callable[[T], None], interval: float) -> None:
        self._tell = tell
        self._interval = interval
        self._told: T | None = None
        self._next: T | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, value: T) -> None:
        self._next = value
        if self._timer is None:
            self._pass_on()

    def _pass_on(self) -> None:
        self._timer = None
        if self._next is None or self._next == self._told:
            return
        self._told = self._next
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._pass_on)
        self._tell(self._told)

    def close(self) -> None:
        """A value that is still waiting is dropped."""
        if self._timer is not None:
            self._timer.cancel()
