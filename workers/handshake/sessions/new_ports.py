"""Ports that a data plane tries while a client's session hears nothing: sockets are lent to it (RFC 9000 §9).

The supervisor makes them, one for a session at a time. What became of one is in the session's record before the
socket that is needed no more is released. The data plane tells a restarted worker which one it tries and which one it
uses (``SessionMark``); a data plane that is new itself is told which one the kernel tries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from qre.dataplane.protocol import Answer, NewPort, PortTried, PortUse, PortWanted
from qre.errors import QreError
from qre.ipc.tasks import Tasks
from qre.workers.handshake.sessions.live_sessions import Sessions
from qre.workers.handshake.sessions.session_sockets import SessionSockets
from qre.workers.handshake.sessions.session_state import Live, PortEvent, PortsKnown


class NewPorts:
    """``pump`` sends what is asked of the data plane; ``release`` gives back the sockets that nothing uses."""

    def __init__(
        self,
        sessions: Sessions,
        sockets: SessionSockets,
        tasks: Tasks,
        pump: Callable[[], None],
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._sockets = sockets
        self._tasks = tasks
        self._pump = pump
        self._release = release
        self._asked: set[bytes] = set()

    def heard(self, event: PortEvent) -> None:
        """What the data plane says of a session's ports."""
        session_id = event.session_id
        live = self._sessions.find(session_id)
        match event:
            case PortWanted():
                if live is not None and (ours := self._sockets.lent.get(session_id)):
                    self._offer(live, ours, again=True)
                elif live is not None and session_id not in self._asked:
                    self._asked.add(session_id)
                    self._tasks.spawn(self._lend(live))
                return
            case PortTried(number=number, moved=moved):
                self._returned(session_id, number)
            case PortsKnown(port=moved, lent=number):
                ours = self._sockets.lent.pop(session_id, 0)
                if number:
                    self._sockets.lent[session_id] = number
                elif ours and moved is None and live is not None:
                    self._offer(live, ours, again=True)
        if live is not None and moved is not None and moved.number != live.record.socket_number:
            self._moved(live, moved)
        self._tasks.spawn(self._released())

    def _returned(self, session_id: bytes, number: int) -> None:
        if self._sockets.lent.get(session_id) == number:
            del self._sockets.lent[session_id]

    async def _lend(self, live: Live) -> None:
        session_id, underlay = live.record.session_id, live.record.underlay
        try:
            number, _ = await self._sockets.new(underlay.peer_ip, underlay.peer_port)
            if self._sessions.find(session_id) is live:
                self._offer(live, number)
        except QreError as error:
            self._sockets.log.info("no other port for a session that hears nothing: %s", error)
        finally:
            self._asked.discard(session_id)
        await self._release()

    def _offer(self, live: Live, number: int, *, again: bool = False) -> None:
        session_id = live.record.session_id
        asked = self._sessions.ask(
            lambda id: NewPort(id=id, session_id=session_id, number=number, again=again),
            lambda answer, now: self._answered(live, number, answer),
            number,
        )
        if asked is not None:
            self._sockets.lent[session_id] = number
            self._pump()

    def _answered(self, live: Live, number: int, answer: Answer) -> None:
        """Refused: the peer is heard again, or the session has ended."""
        if answer.refusal is not None:
            self._returned(live.record.session_id, number)
            self._tasks.spawn(self._released())

    def _moved(self, live: Live, use: PortUse) -> None:
        """Whoever installs the session again does it as it is now. Its first connection IDs are retired: the peer
        issues no other before."""
        record = live.record
        port = self._sockets.local_port(use.number)
        if port is None:
            return  # it was released: with another data plane the session ends, and the next one begins
        handed_over = replace(
            record.handed_over,
            routed_cid=use.connection_id,
            reset_token=use.reset_token,
            retire_sequence=use.sequence - 1 if use.sequence else None,
        )
        underlay = msgspec.structs.replace(record.underlay, local_port=port)
        self._sessions.change(
            live,
            replace(record, handed_over=handed_over, underlay=underlay, socket_number=use.number, settled=True),
        )

    async def _released(self) -> None:
        await self._release()
