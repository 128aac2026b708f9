"""The messages between the handshake workers of two daemons on one port, over the feed between them.

The front owns the port's socket: it authenticates visitors, remembers each hello, and passes a client of the other
daemon on unchanged. That daemon answers the client through a duplicate of the socket. Both ends check all input.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

import msgspec

from qre.addresses import Address as IpAddress
from qre.dataplane.protocol import PacketNumber, ShortId
from qre.quic.server.inspector import MAX_DATAGRAMS, MAX_HELLO, Authenticated
from qre.quic.server.server_handshake import ShownByDest
from qre.reality.authenticator import SharedSecrets
from qre.structs import U64, IpText, Message, Port, Struct
from qre.wire.initial import MAX_DATAGRAM
from qre.workers.handshake.port.flow_parts import Address, Hello

Cid = Annotated[bytes, msgspec.Meta(max_length=20)]
Datagram = Annotated[bytes, msgspec.Meta(max_length=MAX_DATAGRAM)]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Visitor(Struct, frozen=True, kw_only=True):
    """A client's address; ``local``: the one of ours that it speaks to, where the port has several."""

    ip: IpText
    port: Port
    local: IpAddress | None = None

    @property
    def address(self) -> Address:
        """As the flow table has it."""
        return (self.ip, self.port) if self.local is None else (self.ip, self.port, str(self.local))


def visitor_of(source: Address) -> Visitor:
    """The visitor with this address in the flow table."""
    return Visitor(ip=source[0], port=source[1], local=ip_address(source[2]) if len(source) == 3 else None)


class Shown(Struct, frozen=True, kw_only=True):
    """See ``qre.quic.server.server_handshake.ShownByDest``."""

    source_cid: Cid
    highest_packet_number: PacketNumber


# --- front -> guest ---


class Begin(Message, frozen=True, kw_only=True):
    """A client was authenticated with a short id of the guest; the fields are those of ``Authenticated``."""

    visitor: Visitor
    client_hello: Annotated[bytes, msgspec.Meta(max_length=MAX_HELLO)]
    random_hash: Annotated[bytes, msgspec.Meta(max_length=32)]
    hello_key: Annotated[bytes, msgspec.Meta(max_length=32)]
    hello_iv: Annotated[bytes, msgspec.Meta(max_length=32)]
    proof: Annotated[bytes, msgspec.Meta(max_length=64)]
    server_name: Annotated[str, msgspec.Meta(max_length=255)]
    short_id: ShortId
    client_version: tuple[_Byte, _Byte, _Byte]
    unix_time: U64
    original_destination_cid: Cid
    retry_source_cid: Cid | None
    datagrams: Annotated[tuple[Datagram, ...], msgspec.Meta(max_length=MAX_DATAGRAMS)]
    shown: Shown | None

    def __repr__(self) -> str:
        return "Begin(hidden)"

    def hello(self, now: float) -> Hello:
        """The verdict of the front's inspector, received at ``now``."""
        found = Authenticated(
            client_hello=self.client_hello,
            random_hash=self.random_hash,
            secrets=SharedSecrets(self.hello_key, self.hello_iv, self.proof),
            server_name=self.server_name,
            short_id=self.short_id,
            client_version=self.client_version,
            unix_time=self.unix_time,
            original_destination_cid=self.original_destination_cid,
            retry_source_cid=self.retry_source_cid,
        )
        shown = self.shown
        return Hello(
            found,
            list(self.datagrams),
            self.visitor.address,
            now,
            None if shown is None else ShownByDest(shown.source_cid, shown.highest_packet_number),
        )


class More(Message, frozen=True, kw_only=True):
    """Another datagram of a client whose handshake is under way."""

    visitor: Visitor
    data: Datagram


class DestSpoke(Message, frozen=True, kw_only=True):
    """A datagram of Dest for such a client, with its ECN mark; a Retry, too."""

    visitor: Visitor
    data: Datagram
    ecn: Annotated[int, msgspec.Meta(ge=0, le=3)]


class Abandon(Message, frozen=True, kw_only=True):
    """The front gave the handshake up to make room, or because the client began again."""

    visitor: Visitor


ToGuest = Begin | More | DestSpoke | Abandon


# --- guest -> front ---


class Began(Message, frozen=True, kw_only=True):
    """The guest answers under this connection ID, which the client's next Initials carry."""

    visitor: Visitor
    handshake_cid: Cid


class Left(Message, frozen=True, kw_only=True):
    """The handshake does not follow Dest any more, and this tells Dest so; empty: it never did."""

    visitor: Visitor
    farewell: Datagram


class GivesUp(Message, frozen=True, kw_only=True):
    """Dest chose what the guest cannot have: the client has to see Dest itself."""

    visitor: Visitor


class Over(Message, frozen=True, kw_only=True):
    """The handshake has succeeded or failed."""

    visitor: Visitor


ToFront = Began | Left | GivesUp | Over


def begin(hello: Hello) -> Begin:
    """The message that passes the client of ``hello`` to its daemon."""
    found, shown = hello.found, hello.shown
    return Begin(
        visitor=visitor_of(hello.source),
        client_hello=found.client_hello,
        random_hash=found.random_hash,
        hello_key=found.secrets.hello_key,
        hello_iv=found.secrets.hello_iv,
        proof=found.secrets.proof,
        server_name=found.server_name,
        short_id=found.short_id,
        client_version=found.client_version,
        unix_time=found.unix_time,
        original_destination_cid=found.original_destination_cid,
        retry_source_cid=found.retry_source_cid,
        datagrams=tuple(hello.datagrams),
        shown=None
        if shown is None
        else Shown(source_cid=shown.source_cid, highest_packet_number=shown.highest_packet_number),
    )
