"""The tickets that a client holds, by server. Sans-IO: the caller keeps ``image`` in a file of fixed length.

A ticket is taken out before it is used, and so is never used twice (RFC 8446 §C.4), whatever ends in between. What
cannot be read is forgotten: without tickets a client is a browser that was there before and has forgotten it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Annotated, Final

import msgspec

from qre.quic.resumption.file_lengths import TICKETS_LENGTH
from qre.quic.resumption.held_ticket import HeldTicket
from qre.structs import U32, Struct

#: Servers, and tickets of each: a browser holds as many.
MOST_SERVERS, MOST_TICKETS = 8, 2
_LENGTH_SIZE: Final = 4
_NAME_LENGTH: Final = 16


class _Known(Struct, frozen=True, kw_only=True):
    """Of one server. ``round_trip_us``: as last measured, 0: not known."""

    server: Annotated[bytes, msgspec.Meta(min_length=_NAME_LENGTH, max_length=_NAME_LENGTH)]
    tickets: Annotated[tuple[HeldTicket, ...], msgspec.Meta(max_length=MOST_TICKETS)]
    round_trip_us: U32 = 0


_Stored = Annotated[tuple[_Known, ...], msgspec.Meta(max_length=MOST_SERVERS)]


def name_of(server_name: str, public_key: bytes, short_id: bytes) -> bytes:
    """Under which name the tickets of a server are kept: they are of one client of one key."""
    return hashlib.sha256(b"qre tickets" + public_key + short_id + server_name.encode()).digest()[:_NAME_LENGTH]


class TicketStore:
    """``image``: the file as it was read, any length."""

    def __init__(self, image: bytes) -> None:
        self._known: dict[bytes, _Known] = {}
        length = int.from_bytes(image[:_LENGTH_SIZE], "big")
        try:
            stored = msgspec.msgpack.decode(image[_LENGTH_SIZE : _LENGTH_SIZE + length], type=_Stored)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        self._known = {each.server: each for each in stored}

    @property
    def image(self) -> bytes:
        """What the file has to hold: as many servers as have room, the last ones."""
        known = list(self._known.values())
        while len(data := msgspec.msgpack.encode(known)) > TICKETS_LENGTH - _LENGTH_SIZE:
            del known[0]
        return (len(data).to_bytes(_LENGTH_SIZE, "big") + data).ljust(TICKETS_LENGTH, b"\0")

    def take(self, server: bytes, unix_ms: int) -> HeldTicket | None:
        """The newest ticket of this server that can be used. It is not kept any more, nor are those that cannot."""
        known = self._known.get(server)
        if known is None:
            return None
        usable = [each for each in known.tickets if each.is_usable(unix_ms)]
        taken = usable.pop() if usable else None
        self._known[server] = msgspec.structs.replace(known, tickets=tuple(usable))
        return taken

    def round_trip_us(self, server: bytes) -> int:
        """As it was measured last; 0: not known."""
        known = self._known.get(server)
        return known.round_trip_us if known is not None else 0

    def put(self, server: bytes, tickets: tuple[HeldTicket, ...], round_trip_us: int) -> None:
        """What a connection to this server has brought."""
        known = self._known.pop(server, None)
        earlier = known.tickets if known is not None else ()
        kept = (*earlier, *tickets)[-MOST_TICKETS:]
        self._known[server] = _Known(server=server, tickets=kept, round_trip_us=round_trip_us)
        while len(self._known) > MOST_SERVERS:
            del self._known[next(iter(self._known))]

    def forget(self, server: bytes) -> None:
        """All that is known of a server."""
        self._known.pop(server, None)

    def keep(self, servers: Collection[bytes]) -> None:
        """Forget all others: the profile does not name them any more."""
        self._known = {server: known for server, known in self._known.items() if server in servers}
