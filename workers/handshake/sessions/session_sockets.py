"""A client's UDP sockets by number: made by the supervisor, used by a session or by an attempt to make one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from qre.addresses import Address
from qre.errors import MachineError
from qre.ipc.messages import Party, SocketGranted, SocketRelease, SocketRequest
from qre.ipc.worker import WorkerContext


class SessionSockets:
    """``held`` are descriptors by number, which the link to the data plane uses, too; ``used``: the numbers of those
    that a session has."""

    def __init__(self, context: WorkerContext, held: dict[int, int], used: Callable[[], Collection[int]]) -> None:
        self._context = context
        self._held = held
        self._used = used

    def take_over(self) -> None:
        """Those of an earlier process, which the supervisor has handed over."""
        for (name, number), fd in self._context.numbered.items():
            if name == "client_udp":
                self._held[number] = fd
        self._context.descriptors.pop("client_udp", None)

    def arrived(self, number: int, fd: int) -> None:
        """Keep socket ``number``, which the supervisor has sent; takes ownership of ``fd``."""
        before = self._held.pop(number, None)
        if before is not None:
            os.close(before)
        self._held[number] = fd

    async def new(self, peer: Address, port: int) -> tuple[int, Address | None]:
        """Its number, and where its packets to the server come from, if there is a route. Raises MachineError."""
        granted = await self._context.request(Party.SUPERVISOR, SocketRequest(peer=peer, port=port))
        if not isinstance(granted, SocketGranted) or granted.number not in self._held:
            raise MachineError("underlay socket", "the supervisor did not send it")
        return granted.number, granted.local

    async def release_unused(self) -> None:
        """Return those that no session uses to the supervisor."""
        for number in self._held.keys() - set(self._used()):
            os.close(self._held.pop(number))
            await self._context.send(Party.SUPERVISOR, SocketRelease(number=number))

    def close(self) -> None:
        """Close ours; the supervisor and the data plane keep theirs."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()
