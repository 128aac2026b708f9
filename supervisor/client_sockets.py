"""A client's underlay sockets: made here, kept for restarts of the workers, and led to the server.

They are connected, as a browser's are: then Linux counts a socket's packets in the identification of their IP
headers, from a random number on, qre.ko's like the handshake's, and passes on nothing but the server's. A connected
socket keeps its local address. When the network has changed and packets to the server would come from another one, it
is connected anew, from its old port: the descriptors in the workers, and qre.ko's, are of the same socket.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qre.addresses import Address
from qre.errors import MachineError
from qre.kernel.udp.control_messages import family_of
from qre.kernel.udp.underlay_sockets import client_socket, connect_anew, source_address

#: An attempt needs one, and a session may be replaced.
MAX_CLIENT_SOCKETS: Final = 8


@dataclass(frozen=True)
class _Granted:
    made: socket.socket
    peer: Address
    port: int


class ClientSockets:
    """``ip``: where they are bound, empty for all addresses; ``port``: 0 for a fresh one each."""

    def __init__(self, ip: str, port: int) -> None:
        self._ip = ip
        self._port = port
        self._granted: dict[int, _Granted] = {}
        self._next = 1

    def grant(self, peer: Address, port: int) -> tuple[int, int, Address | None]:
        """A new socket for packets to ``peer``: its number, its descriptor, which stays ours, and where its packets
        come from, if there is a route. Raises QreError."""
        if len(self._granted) >= MAX_CLIENT_SOCKETS:
            raise MachineError("client socket", "too many are in use")
        made = client_socket(self._ip, self._port, family_of(str(peer)))
        number, self._next = self._next, self._next + 1
        granted = self._granted[number] = _Granted(made, peer, port)
        return number, made.fileno(), self._lead(granted)

    def held(self) -> Iterator[tuple[int, int]]:
        """The number and the descriptor of each."""
        return ((number, granted.made.fileno()) for number, granted in self._granted.items())

    def release(self, number: int) -> None:
        """The workers need it no longer."""
        released = self._granted.pop(number, None)
        if released is not None:
            released.made.close()

    def network_changed(self) -> None:
        """Addresses, routes, rules or links have changed."""
        for granted in self._granted.values():
            self._lead(granted)

    def _lead(self, granted: _Granted) -> Address | None:
        """Connect it, unless it is, and from the right address. A peer to which there is no route now is led to
        later."""
        source = source_address(self._ip, granted.peer)
        if source is not None and not _leads(granted.made, source):
            with contextlib.suppress(OSError):  # the route has gone again; unconnected, it works as well
                connect_anew(granted.made, (str(granted.peer), granted.port))
        return source


def _leads(made: socket.socket, source: Address) -> bool:
    try:
        made.getpeername()
    except OSError:
        return False
    return bool(made.getsockname()[0] == str(source))
