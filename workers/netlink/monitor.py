"""Reports that links of this namespace may have changed (RTNLGRP_LINK), and nothing more.

The contents of notifications are not used, because some get lost when the kernel's queue overflows: they only trigger
a new look at the links. Needs no capability.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from qre.errors import MachineError
from qre.kernel.socket import NETLINK_ROUTE

_RTMGRP_LINK = 1
_RECEIVE_SIZE = 1 << 16


class LinkMonitor:
    """Calls ``changed`` from the running loop after link notifications, once for all that are waiting.

    ``failed`` is called with the reason when no more can be received.
    """

    def __init__(self, changed: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._changed = changed
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, flags, NETLINK_ROUTE)
        except OSError as error:
            raise MachineError("link notifications", error.strerror or str(error)) from error
        try:
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError as error:
            self._socket.close()
            raise MachineError("link notifications", error.strerror or str(error)) from error
        self._loop.add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        while True:
            try:
                self._socket.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # ENOBUFS only means that some were lost
                    self._loop.remove_reader(self._socket)
                    self._failed(f"link notifications: {error.strerror or error}")
                    return
        self._changed()

    def close(self) -> None:
        """No more calls of ``changed`` after it."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
