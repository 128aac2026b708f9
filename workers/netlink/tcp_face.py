"""A server's TCP face while the daemon runs: looks every few seconds, and as soon as something has changed.

Rules that another program flushes, a machine that becomes a router, a route or an address that changes: the kernel
tells of it by netlink's multicast groups, of which nothing is read but that they spoke. A new listener tells nobody,
so there are looks in between. Whatever is in the way is logged once, and never ends the worker.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

from qre.errors import QreError
from qre.ipc.messages import SiteTcpPort
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.kernel.site_tcp.site_face import TAKEN, SiteFace, State, Wanted
from qre.kernel.socket import NETLINK_ROUTE

_INTERVAL: Final = 5.0
#: From news to the look: a firewall is loaded in several steps.
_PAUSE: Final = 0.1
_NETLINK_NETFILTER: Final = 12
#: Protocol and groups: nftables; links, IPv4 addresses, routes and settings of devices.
_NEWS: Final = ((_NETLINK_NETFILTER, (7,)), (NETLINK_ROUTE, (1, 5, 7, 24)))
#: Messages read at once; the kernel drops what does not fit.
_AT_ONCE: Final = 512
_MOST_SAID: Final = 32
_FRONT: Final = "the daemon that has the port passes them on"


class TcpFace:
    """``dest`` is Dest's address, as the handshake worker last told it."""

    def __init__(self, context: WorkerContext, tasks: Tasks) -> None:
        self.dest = context.config.dest_address
        self._context = context
        self._face = SiteFace(context.config.device)
        self._state = State()
        self._said: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._news = [each for each in (_listen_to(*news) for news in _NEWS) if each is not None]
        for each in self._news:
            self._loop.add_reader(each, self._heard, each)
        tasks.spawn(self._look_again())

    def look(self) -> None:
        """Compare and mend now."""
        wanted = self._wanted()
        if self._context.config.joined:
            self._face.look(replace(wanted, ports=()))  # what a killed daemon left, when it had the port
            self._state = State(why=_FRONT)
            return
        self._state = self._face.look(wanted)
        if self.dest is not None:
            for each in self.status():
                if each.why:
                    self._say(f"TCP port {each.port} is not passed to Dest: {each.why}")

    def _say(self, text: str) -> None:
        """Once."""
        if text not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text)
            self._context.log.info("%s", text)

    def status(self) -> tuple[SiteTcpPort, ...]:
        """For each port how many connections were passed, or why none is."""
        counts = self._face.counts()
        passed = dict(self._state.ports)
        return tuple(
            SiteTcpPort(
                port=port,
                connections=counts.get(port, 0),
                why="" if port in passed else TAKEN if port in self._state.taken else self._state.why[:512],
            )
            for port, _ in self._wanted().chosen()
        )

    def undo(self) -> None:
        """Take everything back. What cannot be is left to the daemon's parent, which tries again."""
        try:
            self._face.undo()
        except QreError as error:
            self._context.log.debug("%s", error)

    def close(self) -> None:
        """No more looks; what is in place stays."""
        for each in self._news:
            self._loop.remove_reader(each)
            each.close()

    def _wanted(self) -> Wanted:
        config = self._context.config
        return Wanted(
            device=config.device,
            listen=(IPv4Address(config.listen_ip), config.listen_port),
            ports=config.site_tcp,
            dest=self.dest,
            dest_port=config.dest_port,
            ttl=config.ttl,
        )

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            self.look()

    def _heard(self, spoke: socket.socket) -> None:
        """Look in a moment, once for all that comes until then; seldom while there is something in the way."""
        self._loop.remove_reader(spoke)
        self._loop.call_later(_INTERVAL if self._state.why else _PAUSE, self._look_for, spoke)

    def _look_for(self, spoke: socket.socket) -> None:
        if spoke.fileno() < 0:
            return  # closed meanwhile
        _empty(spoke)
        self.look()  # if it changes something, that is news again, and the next look changes nothing
        self._loop.add_reader(spoke, self._heard, spoke)


def _listen_to(protocol: int, groups: tuple[int, ...]) -> socket.socket | None:
    """A socket that hears of changes; None where there is none, and only the clock is left."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        made = socket.socket(socket.AF_NETLINK, kind, protocol)
    except OSError:
        return None
    try:
        made.bind((0, sum(1 << (group - 1) for group in groups)))
    except OSError:
        made.close()
        return None
    return made


def _empty(spoke: socket.socket) -> None:
    for _ in range(_AT_ONCE):
        try:
            spoke.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # ENOBUFS only means that some were lost
                return
