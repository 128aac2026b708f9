"""When to look at this machine's firewall and routing again: every few seconds, and as soon as something has changed.

Rules that another program flushes, a machine that becomes a router, a route or an address that changes: the kernel
tells of it by netlink's multicast groups, of which nothing is read but that they spoke. A new listener tells nobody,
so there are looks in between.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from qre.ipc.tasks import Tasks
from qre.kernel.socket import NETLINK_ROUTE

_INTERVAL: Final = 5.0
#: From news to the look: a firewall is loaded in several steps.
_PAUSE: Final = 0.1
_NETLINK_NETFILTER: Final = 12
#: Protocol and groups: nftables; links, addresses, routes and settings of devices, of both versions of IP.
_NEWS: Final = ((_NETLINK_NETFILTER, (7,)), (NETLINK_ROUTE, (1, 5, 7, 9, 11, 24, 25)))
#: Messages read at once; the kernel drops what does not fit.
_AT_ONCE: Final = 512


class FirewallNews:
    """``look`` compares and mends; ``hindered``: something is in the way, and news are looked at seldom."""

    def __init__(self, look: Callable[[], None], hindered: Callable[[], bool], tasks: Tasks) -> None:
        self._look = look
        self._hindered = hindered
        self._loop = asyncio.get_running_loop()
        self._sockets = [each for each in (_listen_to(*news) for news in _NEWS) if each is not None]
        for each in self._sockets:
            self._loop.add_reader(each, self._heard, each)
        tasks.spawn(self._look_again())

    def close(self) -> None:
        """No more looks."""
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            self._look()

    def _heard(self, spoke: socket.socket) -> None:
        """Look in a moment, once for all that comes until then."""
        self._loop.remove_reader(spoke)
        self._loop.call_later(_INTERVAL if self._hindered() else _PAUSE, self._look_for, spoke)

    def _look_for(self, spoke: socket.socket) -> None:
        if spoke.fileno() < 0:
            return  # closed meanwhile
        _empty(spoke)
        self._look()  # if it changes something, that is news again, and the next look changes nothing
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
