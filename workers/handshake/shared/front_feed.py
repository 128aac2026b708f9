"""A joined daemon's side of a shared port: the front passes on clients, answers leave through the port's socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from qre.errors import MachineError
from qre.ipc.channel import Channel
from qre.workers.handshake.port.flow_parts import Address
from qre.workers.handshake.shared.feed_messages import Began, GivesUp, Left, Over, ToFront, ToGuest, visitor_of


class FrontFeed:
    """``arrived`` is called with each message. A closed feed is not a failure: the parent finds another front."""

    def __init__(self, fd: int, arrived: Callable[[ToGuest], None], complain: Callable[[str, str], None]) -> None:
        self._channel: Channel[ToGuest] = Channel(socket.socket(fileno=fd), ToGuest)
        self._arrived = arrived
        self._complain = complain

    def open(self) -> None:
        """Begin to read; needs a running event loop."""
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._readable)

    def close(self) -> None:
        """Can be called twice."""
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()

    def began(self, source: Address, handshake_cid: bytes) -> None:
        """Tell the front that the handshake with ``source`` goes on here, under ``handshake_cid``."""
        self._tell(Began(visitor=visitor_of(source), handshake_cid=handshake_cid))

    def left(self, source: Address, farewell: bytes) -> None:
        """Tell the front that Dest is followed no more, and with what Dest is told so."""
        self._tell(Left(visitor=visitor_of(source), farewell=farewell))

    def not_followed(self, source: Address) -> None:
        """Tell the front that the client has to see Dest itself."""
        self._tell(GivesUp(visitor=visitor_of(source)))

    def over(self, source: Address) -> None:
        """Tell the front to forget the handshake with ``source``."""
        self._tell(Over(visitor=visitor_of(source)))

    def _tell(self, message: ToFront) -> None:
        try:
            self._channel.send(message)
        except MachineError as error:
            self._complain("front", f"the port's front does not read its messages: {error}")

    def _readable(self) -> None:
        self._channel.drain(
            lambda message, fds: self._arrived(message), closed=self.close, malformed=lambda error: self.close()
        )
