"""What a client waits to hear of its sessions: that one has begun, that the peer uses it, that it is silent, that it
has ended.

A session that has *begun* carries packets: that is all that its own traffic waits for. Whatever is given up for its
sake (a predecessor, an orphan, another server's session, another server that might be tried) waits until the peer was
heard with it, which on an idle tunnel takes until the data plane asks it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from qre.addresses import Address, Network
from qre.causes import Cause
from qre.dataplane.protocol import PortTried, PortWanted, SessionBegun, SessionSilent
from qre.errors import PeerError
from qre.ipc.messages import WorkerConfig
from qre.wire.close_reason import CloseReason
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.session_state import (
    Confirmed,
    Event,
    Lost,
    Orphaned,
    PortEvent,
    PortsKnown,
    SessionEnd,
)

#: A data plane gives up a session that hears nothing after some 10 s; this is for one that does not answer (seconds).
_LONGEST_CONFIRMATION: Final = 20.0


class MadeFor(NamedTuple):
    """What a session has of the profile for life: the addresses that were asked for, and AllowedIPs."""

    addresses: frozenset[Address]
    allowed_ips: frozenset[Network]

    @classmethod
    def of(cls, config: WorkerConfig) -> MadeFor:
        """What one that is made now has."""
        return cls(frozenset(each.ip for each in config.address), frozenset(config.allowed_ips))


class AwaitedSession:
    """One session, from its installation until nobody waits for it. ``silent``: nothing comes back."""

    def __init__(self, made_for: MadeFor, *, confirmed: bool) -> None:
        self.made_for = made_for
        self.silent = False
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.confirmed: asyncio.Future[None] = loop.create_future()
        if confirmed:
            self.peer_heard()
        self.unheard: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[SessionEnd] = loop.create_future()
        self._news = asyncio.Event()

    def has_begun(self) -> None:
        """Its first packet has left; harmless when that was known."""
        if not self.begun.done():
            self.begun.set_result(None)

    def peer_heard(self) -> None:
        """It is confirmed, and has begun before; harmless when that was known."""
        self.has_begun()
        if not self.confirmed.done():
            self.confirmed.set_result(None)

    def peer_silent(self, *, silent: bool) -> None:
        """What it has sent is not acknowledged, or is again."""
        self.silent = silent
        if silent and not self.confirmed.done() and not self.unheard.done():
            self.unheard.set_result(None)
        self.wake()

    def wake(self) -> None:
        """Something has changed for it."""
        self._news.set()

    async def until_news(self, timeout: float) -> None:
        """Wait for ``timeout`` seconds, or until it is lost, silent or woken; not at all while it is one of these."""
        if self.lost.done() or self.silent:
            return
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()


class AwaitedSessions:
    """Those of ``sessions``; ``pump`` sends what is asked of the data plane, ``orphaned`` is told of sessions that an
    earlier daemon left, ``abandoned`` when a session has ended for which nobody waited any more, and ``ports`` of
    what is said of other ports."""

    def __init__(
        self,
        sessions: Sessions,
        pump: Callable[[], None],
        orphaned: Callable[[], None],
        abandoned: Callable[[], None],
        ports: Callable[[PortEvent], None],
    ) -> None:
        self._sessions = sessions
        self._pump = pump
        self._orphaned = orphaned
        self._abandoned = abandoned
        self._ports = ports
        self._awaited: dict[bytes, AwaitedSession] = {}

    def expect(self, session_id: bytes, made_for: MadeFor, *, confirmed: bool) -> None:
        """Before it is installed, or when an earlier process has left it."""
        self._awaited[session_id] = AwaitedSession(made_for, confirmed=confirmed)

    def wake(self) -> None:
        """Something has changed for all of them."""
        for awaited in self._awaited.values():
            awaited.wake()

    def of(self, session_id: bytes) -> AwaitedSession | None:
        """None: it has ended, and that was heard."""
        return self._awaited.get(session_id)

    def forget(self, session_id: bytes) -> None:
        """Nobody waits for it any more; it need not have ended."""
        self._awaited.pop(session_id, None)

    async def until_begun(self, session_id: bytes) -> None:
        """Wait until the session carries packets. Raises PeerError when it is lost first."""
        await self._until(session_id, self._awaited[session_id].begun)

    async def until_confirmed(self, session_id: bytes, *, alone: bool) -> None:
        """Wait until the peer was heard with the session, or is silent: one that is ``alone`` goes on then, and ends
        beside another. Raises PeerError when it is lost first, or ends."""
        awaited = self._awaited[session_id]
        await self._until(session_id, awaited.confirmed, awaited.unheard)
        if not awaited.confirmed.done() and not alone:
            words = "nothing was heard with it"
            self._end(session_id, words, CloseReason.REPLACED)
            raise PeerError("session lost", words)

    def _end(self, session_id: bytes, words: str, reason: CloseReason) -> None:
        self._sessions.delete(session_id, words, reason)
        self._pump()
        self.forget(session_id)

    async def _until(self, session_id: bytes, *wanted: asyncio.Future[None]) -> None:
        awaited = self._awaited[session_id]
        lost = awaited.lost
        each_of: set[asyncio.Future[Any]] = {*wanted, lost}
        await asyncio.wait(each_of, timeout=_LONGEST_CONFIRMATION, return_when=asyncio.FIRST_COMPLETED)
        if any(each.done() for each in wanted) and not lost.done():
            return
        if lost.done():
            self.forget(session_id)
        else:
            self._end(session_id, "the data plane did not install it in time", CloseReason.NOT_INSTALLED)
        what = "session lost" if awaited.begun.done() else "the session did not start"
        if lost.done() and lost.result().reason is CloseReason.TWIN:
            raise PeerError.of(what, Cause.TWIN)
        raise PeerError(what, lost.result().words if lost.done() else "no answer")

    def heard(self, events: deque[Event]) -> None:
        """Take what has happened to the sessions."""
        while events:
            match events.popleft():
                case SessionBegun(session_id=session_id):
                    awaited = self._awaited.get(session_id)
                    if awaited is not None:
                        awaited.has_begun()
                case Confirmed(session_id=session_id):
                    awaited = self._awaited.get(session_id)
                    if awaited is not None:
                        awaited.peer_heard()
                case Lost(record=record, end=end):
                    awaited = self._awaited.get(record.session_id)
                    if awaited is None:
                        self._abandoned()
                    elif not awaited.lost.done():
                        awaited.lost.set_result(end)
                        awaited.wake()
                case SessionSilent(session_id=session_id, silent=silent):
                    awaited = self._awaited.get(session_id)
                    if awaited is not None:
                        awaited.peer_silent(silent=silent)
                case PortWanted() | PortTried() | PortsKnown() as said:
                    self._ports(said)
                case Orphaned():
                    self._orphaned()
                case _:
                    pass
