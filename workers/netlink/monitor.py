"""Notices that links, addresses, routes or rules of this namespace may have changed (rtnetlink's multicast groups).

Of a notification only the kind is used, and whose request it was about: some get lost when the kernel's queue
overflows, so each only triggers a new look. The looks are spaced: a machine whose routes change all the time costs a
bounded amount, and somebody who removes several things in one go is done before we look. Needs no capability.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError
from qre.kernel.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from qre.kernel.socket import NETLINK_ROUTE
from qre.kernel.tunnel import Part

_GROUPS: Final = (1, 5, 7, 8, 9, 11, 19)  # RTNLGRP_LINK; of IPv4, then IPv6: addresses, routes, rules
_KINDS: Final = {
    RTM_NEWLINK: Part.LINK,
    RTM_DELLINK: Part.LINK,
    RTM_NEWADDR: Part.ADDRESSES,
    RTM_DELADDR: Part.ADDRESSES,
    RTM_NEWROUTE: Part.ROUTES,
    RTM_DELROUTE: Part.ROUTES,
    RTM_NEWRULE: Part.RULES,
    RTM_DELRULE: Part.RULES,
}
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_RECEIVE_SIZE: Final = 1 << 16
#: Datagrams read at once; the kernel keeps the others, or drops them.
_AT_ONCE: Final = 512
#: Seconds from a notification to the look; and a look takes no more than this share of the time.
_PAUSE: Final = 0.1
_SHARE: Final = 0.1
_LONGEST_PAUSE: Final = 0.8


class NetworkMonitor:
    """Calls ``changed`` from the running loop, with the netlink port of the last request for each kind of change (0:
    the kernel's own doing), as far as it was told. Changes that ``own`` requested are left out.

    ``failed`` is called with the reason when no more can be received.
    """

    def __init__(self, changed: Callable[[dict[Part, int]], None], failed: Callable[[str], None], own: int) -> None:
        self._changed = changed
        self._failed = failed
        self._own = own
        self._pause = _PAUSE
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, flags, NETLINK_ROUTE)
        except OSError as error:
            raise MachineError("network notifications", error.strerror or str(error)) from error
        try:
            self._socket.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
        except OSError as error:
            self._socket.close()
            raise MachineError("network notifications", error.strerror or str(error)) from error
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(self._pause, self._take)

    def _take(self) -> None:
        self._timer = None
        began = time.monotonic()
        by: dict[Part, int] = {}
        for _ in range(_AT_ONCE):
            try:
                data, (sender, _) = self._socket.recvfrom(_RECEIVE_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # ENOBUFS only means that some were lost
                    self._failed(f"network notifications: {error.strerror or error}")
                    return
                by.setdefault(Part.LINK, 0)
                continue
            if sender == 0 and len(data) >= _HEADER.size:
                _, kind, _, _, port = _HEADER.unpack_from(data)
                if kind in _KINDS and port != self._own:
                    by[_KINDS[kind]] = port or by.get(_KINDS[kind], 0)
        if by:
            self._changed(by)
        took = time.monotonic() - began
        self._pause = min(_LONGEST_PAUSE, max(_PAUSE, took / _SHARE))
        self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """No more calls of ``changed`` after it."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
