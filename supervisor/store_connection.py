"""A connection to the replay store, for the handshake worker: it may not make one itself."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

from qre.config.values import parse_ipv4_socket_address
from qre.errors import MachineError

_PATIENCE: Final = 2.0


class StoreAttempts:
    """Attempts for a worker that asks, one at a time: each may take its time, and holds a socket meanwhile."""

    def __init__(self) -> None:
        self._busy = False

    async def connect(self, place: str) -> tuple[str, socket.socket]:
        """As ``connect_store``; MachineError, too, while an earlier attempt is under way."""
        if self._busy:
            raise MachineError("replay store", "an attempt to connect is under way")
        self._busy = True
        try:
            return await connect_store(place)
        finally:
            self._busy = False


async def connect_store(place: str) -> tuple[str, socket.socket]:
    """The name of the descriptor, and the socket, which is the caller's. ``place``: ``address:port``, or the path of
    a Unix socket. Raises MachineError."""
    on_path = place.startswith("/")
    made = socket.socket(socket.AF_UNIX if on_path else socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        if on_path:
            to: str | tuple[str, int] = place
        else:
            address = parse_ipv4_socket_address(place)
            to = (str(address.ip), address.port)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().sock_connect(made, to)
    except OSError as error:  # a TimeoutError too, without a number
        made.close()
        raise MachineError("replay store", os.strerror(error.errno) if error.errno else "no answer") from None
    return ("store_unix" if on_path else "store_ipv4"), made
