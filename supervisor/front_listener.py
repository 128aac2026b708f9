"""The socket at which other daemons join a port, in the supervisor of its front. Messages: ``front``.

A socket of mode 0600, and the caller's uid is checked again (SO_PEERCRED). Connections stay open; there are at most
``MAX_GUESTS`` of them. A connection that says anything but one ``Join``, and one more after each reload, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qre.device.control_client import front_path
from qre.errors import MachineError, QreError
from qre.ipc.channel import Channel
from qre.ipc.private_socket import bind_private
from qre.ipc.tasks import Tasks
from qre.ipc.worker import place_of
from qre.supervisor.control import may_ask
from qre.supervisor.front import GuestDaemon, Join, Joined, Steered, refusal

MAX_GUESTS: Final = 16


@dataclass(frozen=True)
class Host:
    """The part of the crew that the listener uses: its setup, the port's sockets and BPF objects, joining, other
    secrets of one that has joined, and leaving."""

    own: Callable[[], Join]
    pair: tuple[int, int]
    steering: Callable[[], list[int]]
    admit: Callable[[GuestDaemon], Coroutine[Any, Any, None]]
    reload: Callable[[int, int], Coroutine[Any, Any, None]]
    leave: Callable[[int], Coroutine[Any, Any, None]]


class FrontListener:
    """Accepts daemons that join the port."""

    def __init__(self, runtime: Path, name: str, host: Host) -> None:
        self.path = front_path(runtime, name)
        self._host = host
        self._listener: socket.socket | None = None
        self._connections: dict[int, Channel[Join]] = {}
        self._asked: set[int] = set()  # to join
        self._tasks = Tasks(self._failed)
        self._log = logging.getLogger("qre.supervisor")
        self._next = 1

    def open(self) -> None:
        """Bind and listen; replaces the socket of a dead front."""
        listener = bind_private(socket.SOCK_SEQPACKET, self.path, "socket")
        listener.listen(MAX_GUESTS)
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Close all connections: the joined daemons notice, and one of them becomes the front."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self.path.unlink(missing_ok=True)
            self._listener = None
        self._tasks.cancel()
        for number in list(self._connections):
            self._drop(number)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        if not may_ask(accepted) or len(self._connections) >= MAX_GUESTS:
            accepted.close()
            return
        number, self._next = self._next, self._next + 1
        channel: Channel[Join] = Channel(accepted, Join)
        self._connections[number] = channel
        asyncio.get_running_loop().add_reader(channel.fileno(), self._readable, number)

    def _readable(self, number: int) -> None:
        channel = self._connections[number]

        def take(join: Join, fds: list[int]) -> None:
            if len(fds) == 2 and number in self._asked:
                answer, secrets = fds.pop(), fds.pop()
                self._tasks.spawn(self._reload(number, join, secrets, answer))
            elif len(fds) == 1 and number not in self._asked:
                self._asked.add(number)
                self._tasks.spawn(self._join(number, channel, join, fds.pop()))
            else:
                gone()

        def gone() -> None:
            self._drop(number)
            self._tasks.spawn(self._host.leave(number))

        channel.drain(take, closed=gone, malformed=lambda error: gone(), most=1)

    async def _join(self, number: int, channel: Channel[Join], join: Join, secrets: int) -> None:
        ours, theirs = Channel.pair()
        guest = GuestDaemon(number, join.profile, secrets, ours.detach())
        error = refusal(self._host.own(), join)
        try:
            if error:
                guest.close()
            else:
                try:
                    await self._host.admit(guest)
                except QreError as refused:
                    error = str(refused)
            fds = [] if error else [*self._host.pair, theirs.fileno()]
            channel.send(Joined(error=error[:512]), fds)
            if not error:
                channel.send(Steered(device=self._host.own().device), self._host.steering())
        except MachineError:
            self._drop(number)  # it left meanwhile
            await self._host.leave(number)
        finally:
            theirs.close()

    async def _reload(self, number: int, join: Join, secrets: int, answer: int) -> None:
        """Its clients are others now, and its public settings may be."""
        error = refusal(self._host.own(), join)
        try:
            if error:
                os.close(secrets)
            else:
                await self._host.reload(number, secrets)
        except QreError as refused:
            error = str(refused)
        try:
            channel: Channel[Join] = Channel(socket.socket(fileno=answer), Join)
        except OSError:
            os.close(answer)  # no socket
            return
        with contextlib.suppress(MachineError):  # it waits no longer
            channel.send(Joined(error=error[:512]))
        channel.close()

    def _drop(self, number: int) -> None:
        self._asked.discard(number)
        channel = self._connections.pop(number, None)
        if channel is not None:
            asyncio.get_running_loop().remove_reader(channel.fileno())
            channel.close()

    def _failed(self, error: BaseException) -> None:
        """Log it: a failure to admit a daemon must not end this one."""
        self._log.error("joining the port: internal error at %s: %s", place_of(error), type(error).__name__)
