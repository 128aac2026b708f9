"""When a session has been idle for too long, and when it must say something so that it is not: RFC 9000 §10.1."""

from __future__ import annotations

from qre.dataplane.protocol import SessionInstall
from qre.ends import Role

_NEVER = float("inf")


class Liveness:
    """Times in seconds."""

    __slots__ = ("_base", "_client", "_heard", "_idle", "_interval", "_sent", "_sent_since")

    def __init__(self, install: SessionInstall, now: float) -> None:
        self._idle = install.idle_timeout_ms / 1000
        self._interval = install.keepalive_ms / 1000
        self._client = install.role is Role.CLIENT
        self._base = self._heard = self._sent = now
        self._sent_since = False

    def received(self, now: float) -> None:
        """An authentic packet came."""
        self._base = self._heard = now
        self._sent_since = False

    def sent(self, now: float) -> None:
        """An ack-eliciting packet went out; the first one since a packet came restarts the idle timer."""
        self._sent = now
        if not self._sent_since:
            self._sent_since = True
            self._base = now

    def expires(self, pto: float) -> float:
        """When the session is over, if nothing more happens."""
        return self._base + max(self._idle, 3 * pto)

    def keepalive_at(self) -> float:
        """Half of a client's idle time without a packet, or the keepalive interval without sending one."""
        at = self._heard + self._idle / 2 if self._client else _NEVER
        return min(at, self._sent + self._interval) if self._interval else at
