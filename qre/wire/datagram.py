"""The bytes before an IP packet in a QUIC DATAGRAM frame: HTTP Datagrams of CONNECT-IP.

RFC 9297 §2.1 (quarter stream id), RFC 9484 §6 (context id 0: a whole IP packet). The tunnel is stream 0, so both are
zero; longer encodings of zero are legal and read.

Context id 2 is ours: one IP packet in two datagrams, from a client whose server has said that it joins them. A
browser's datagrams have at most 1,250 bytes, and what does not fit into one goes in two::

    identifier 2 | 0x8000 in the second part, and the packet's length 2 | the packet's first, or its last bytes

The identifier is the packet's, counts, and wraps. Nothing may depend on the order in which the two arrive.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from qre.errors import UntrustedInputError
from qre.wire.overhead import ETHERNET_MTU
from qre.wire.varint import read_varint_untrusted

#: DATAGRAM frame without a length (RFC 9221 §4), quarter stream id 0, context id 0.
DATAGRAM_HEAD: Final = b"\x30\x00\x00"
#: Context id of packets in two parts: even, as a client allocates it (RFC 9297 §4).
SPLIT_CONTEXT: Final = 2
#: The header field of CONNECT by which a client offers the context, and of the answer by which a server takes it.
SPLIT_FIELD: Final = (b"qre-split", b"%d" % SPLIT_CONTEXT)
#: The same as DATAGRAM_HEAD before a part.
SPLIT_HEAD: Final = b"\x30\x00" + bytes([SPLIT_CONTEXT])
#: The longest packet in two parts; two of the smallest datagrams are enough for it.
MAX_SPLIT: Final = ETHERNET_MTU
#: Identifiers of packets: 0 up to this.
MAX_IDENTIFIER: Final = 0xFFFF

_PART: Final = struct.Struct(">HH")
_SECOND: Final = 0x8000


class Part(NamedTuple):
    """One of the two parts of a packet of ``total`` bytes."""

    identifier: int
    second: bool
    total: int
    data: bytes


def parse_http_datagram_untrusted(data: bytes) -> tuple[int, int, bytes]:
    """(quarter stream id, context id, content) of the data of a DATAGRAM frame."""
    quarter_stream_id, at = read_varint_untrusted(data)
    context_id, at = read_varint_untrusted(data, at)
    return quarter_stream_id, context_id, data[at:]


def in_two(packet: bytes, identifier: int, room: int) -> list[bytes]:
    """The plaintexts of both parts of an IP packet, neither with more than ``room`` bytes of it. ValueError when two
    are not enough, or one is."""
    total = len(packet)
    if not 0 < room < total <= min(2 * room, MAX_SPLIT):
        raise ValueError(f"{total} bytes in two parts of up to {room}")
    first = _PART.pack(identifier, total)
    second = _PART.pack(identifier, _SECOND | total)
    return [b"".join((SPLIT_HEAD, first, packet[:room])), b"".join((SPLIT_HEAD, second, packet[room:]))]


def parse_part_untrusted(content: bytes) -> Part:
    """The content of a datagram of SPLIT_CONTEXT. It is shorter than its packet, and not empty."""
    if len(content) <= _PART.size:
        raise UntrustedInputError("part of a packet", "it is empty")
    identifier, told = _PART.unpack_from(content)
    total, data = told & ~_SECOND, content[_PART.size :]
    if not len(data) < total <= MAX_SPLIT:
        raise UntrustedInputError("part of a packet", "its length is impossible")
    return Part(identifier, bool(told & _SECOND), total, data)
