"""When a server whose first flight has no answer at all sends what again (RFC 9002 §6.2.1): sans-IO.

Initial and Handshake packets have a timer each, from when the last of them was sent, and one count of timeouts.
"""

from __future__ import annotations

from aioquic import tls

_SPACES = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)


class ProbeTimes:
    """``began``: when the flight was sent; ``timeout``: the first one; ``patience``: after which nothing is sent any
    more (all in seconds)."""

    def __init__(self, began: float, *, timeout: float, patience: float) -> None:
        self._sent_at = dict.fromkeys(_SPACES, began)
        self._timeout = timeout
        self._ends_at = began + patience
        self._count = 0

    def next_due(self) -> float | None:
        """When to ``take``; None: never again."""
        at = min(self._sent_at.values()) + self._timeout * 2**self._count
        return at if at < self._ends_at else None

    def take(self, now: float) -> tls.Epoch | None:
        """Of which packets some go again now; None: of none."""
        due = self.next_due()
        if due is None or now < due:
            return None
        space = min(_SPACES, key=self._sent_at.__getitem__)
        self._sent_at[space] = now
        self._count += 1
        return space
