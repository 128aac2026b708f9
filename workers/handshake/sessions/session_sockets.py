"""A client's UDP sockets by number: made by the supervisor, used by a session or by an attempt to make one."""

from __future__ import annotations

import os
import socket

from qre.addresses import Address
from qre.errors import MachineError
from qre.ipc.messages import Party, SocketGranted, SocketRelease, SocketRequest
from qre.ipc.worker import WorkerContext
from qre.workers.handshake.sessions.live_sessions import Sessions


class SessionSockets:
    """``held`` are descriptors by number, which the link to the data plane uses, too."""

    def __init__(self, context: WorkerContext, held: dict[int, int], sessions: Sessions) -> None:
        self._context = context
        self.log = context.log
        self._held = held
        self._sessions = sessions
        self.lent: dict[bytes, int] = {}  # to the data plane, for a session that tries another port
        self._asking = 0  # for new ones, which nobody uses before they are there
        self._inherited: set[int] = set()  # the data plane may use another one than the session's record says

    def take_over(self) -> None:
        """Those of an earlier process, which the supervisor has handed over."""
        for (name, number), fd in self._context.numbered.items():
            if name == "client_udp":
                self._held[number] = fd
                self._inherited.add(number)
        self._context.descriptors.pop("client_udp", None)

    def arrived(self, number: int, fd: int) -> None:
        """Keep socket ``number``, which the supervisor has sent; takes ownership of ``fd``."""
        before = self._held.pop(number, None)
        if before is not None:
            os.close(before)
        self._held[number] = fd

    async def new(self, peer: Address, port: int) -> tuple[int, Address | None]:
        """Its number, and where its packets to the server come from, if there is a route. Raises MachineError."""
        self._asking += 1
        try:
            granted = await self._context.request(Party.SUPERVISOR, SocketRequest(peer=peer, port=port))
        finally:
            self._asking -= 1
        if not isinstance(granted, SocketGranted) or granted.number not in self._held:
            raise MachineError("underlay socket", "the supervisor did not send it")
        return granted.number, granted.local

    async def release_unused(self) -> None:
        """Return those that no session uses or tries to the supervisor; none while one is on its way: whoever asks
        for it calls this in the end."""
        if self._asking:
            return
        if self._sessions.compared:
            self._inherited.clear()
        self.lent = {one: number for one, number in self.lent.items() if self._sessions.find(one) is not None}
        used = {record.socket_number for record in self._sessions.records()} | {*self.lent.values()}
        for number in self._held.keys() - used - self._inherited:
            os.close(self._held.pop(number))
            await self._context.send(Party.SUPERVISOR, SocketRelease(number=number))

    def local_port(self, number: int) -> int | None:
        """The UDP port of socket ``number``; None when it is not held."""
        fd = self._held.get(number)
        if fd is None:
            return None
        with socket.socket(fileno=os.dup(fd)) as held:
            return int(held.getsockname()[1])

    def close(self) -> None:
        """Close ours; the supervisor and the data plane keep theirs."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
