"""The UDP sockets of clients' sessions: the one in use, one that is being tried, and those that were left lately.

A session decides (``loss/port_trial``); this module follows it. A socket that was left is read for a few seconds
more: packets that were on their way are the session's, and a closed port would answer them with ICMP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from qre.workers.dataplane.session.session import Session
from qre.workers.dataplane.underlay import UnderlaySocket

#: For so long a port that was left is read (seconds).
_LINGERS: Final = 5.0


class _Ports:
    """Of one session. ``number``: of the socket that is being tried."""

    def __init__(self, used: UnderlaySocket) -> None:
        self.used = used
        self.tried: UnderlaySocket | None = None
        self.number = 0
        self.left: dict[UnderlaySocket, asyncio.TimerHandle] = {}


class ClientPorts:
    """``readable`` is called with a session's id and its socket, ``forget`` closes a socket that nobody needs."""

    def __init__(
        self,
        readable: Callable[[bytes, UnderlaySocket], None],
        forget: Callable[[UnderlaySocket], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._readable = readable
        self._forget = forget
        self._of: dict[bytes, _Ports] = {}

    def use(self, session_id: bytes, underlay: UnderlaySocket) -> None:
        """The session has been installed with this socket."""
        self.end(session_id)
        self._of[session_id] = _Ports(underlay)
        self._read(session_id, underlay)

    def lend(self, session_id: bytes, number: int, underlay: UnderlaySocket) -> None:
        """The session tries this one."""
        ports = self._of[session_id]
        if ports.tried is not None:
            self._forget(ports.tried)
        ports.tried, ports.number = underlay, number
        self._read(session_id, underlay)

    def _read(self, session_id: bytes, underlay: UnderlaySocket) -> None:
        self._loop.add_reader(underlay.fileno(), self._readable, session_id, underlay)

    def socket(self, session_id: bytes, *, new_port: bool) -> UnderlaySocket | None:
        """The one in use, or the ``new_port`` that is being tried; None: there is none."""
        ports = self._of.get(session_id)
        if ports is None:
            return None
        return ports.tried if new_port else ports.used

    def follow(self, session: Session) -> None:
        """Take the port that the session has moved to, and forget one that it has tried in vain."""
        ports = self._of.get(session.session_id)
        if ports is None or ports.tried is None or session.lent == ports.number:
            return
        tried, ports.tried = ports.tried, None
        if session.port_use is None or session.port_use.number != ports.number:
            self._forget(tried)
            return
        left, ports.used = ports.used, tried
        ports.left[left] = self._loop.call_later(_LINGERS, self._leave, ports, left)

    def _leave(self, ports: _Ports, left: UnderlaySocket) -> None:
        del ports.left[left]
        self._forget(left)

    def end(self, session_id: bytes) -> None:
        """The session has ended, or gets another socket."""
        ports = self._of.pop(session_id, None)
        if ports is None:
            return
        for timer in ports.left.values():
            timer.cancel()
        for underlay in (ports.used, ports.tried, *ports.left):
            if underlay is not None:
                self._forget(underlay)

    def close(self) -> None:
        """End them all."""
        for session_id in list(self._of):
            self.end(session_id)
