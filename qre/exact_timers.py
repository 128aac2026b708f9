"""An event loop that is late by microseconds: epoll, by which asyncio waits, counts milliseconds and is late by up to
one. What leaves a server at a time that was recorded at a site has to leave then."""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Final

#: Descriptors that select(2) can wait for.
_MOST: Final = 1024


class ExactSelector(selectors.EpollSelector):
    """Waits by select(2), for the one descriptor of epoll: that counts microseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the base class; ``timeout`` in seconds."""
        if timeout is not None and timeout > 0 and self.fileno() < _MOST:
            ready, _, _ = select.select((self.fileno(),), (), (), timeout)
            if not ready:
                return []
            timeout = 0
        return super().select(timeout)


def exact_loop() -> asyncio.AbstractEventLoop:
    """A new event loop; for ``asyncio.Runner``."""
    return asyncio.SelectorEventLoop(ExactSelector())
