"""IPv4 packets that may be fragmented, cut to what the tunnel carries: RFC 791 §2.3 and §3.2, as any router does."""

from __future__ import annotations

import struct
from typing import Final

from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.internet_checksum import checksum_of, word_sum

_HEAD: Final = len(DATAGRAM_HEAD)
_HEADER: Final = 20
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF


def may_be_fragmented_untrusted(packet: bytes) -> bool:
    """Whether it is an IPv4 packet without Don't Fragment. One with options is not: some of them must be copied to
    every fragment, and they are not used in practice."""
    return len(packet) >= _HEADER and packet[0] == 0x45 and not packet[6] & _DONT_FRAGMENT >> 8


def fragments_untrusted(plaintext: bytes, limit: int) -> list[bytes]:
    """The fragments of a plaintext (``DATAGRAM_HEAD`` + a packet that may be fragmented), none of them with a packet
    longer than ``limit``. One that is a fragment already keeps its place in the whole."""
    payload = plaintext[_HEAD + _HEADER :]
    if _HEADER + len(payload) <= limit:
        return [plaintext]
    header = plaintext[_HEAD : _HEAD + _HEADER]
    first = header[6] << 8 | header[7]
    step = (limit - _HEADER) & ~7
    fixed = word_sum(header[:2] + header[4:6] + header[8:10] + header[12:])
    made = []
    for at in range(0, len(payload), step):
        piece = payload[at : at + step]
        more = _MORE_FRAGMENTS if at + step < len(payload) else first & _MORE_FRAGMENTS
        place = more | ((first & _OFFSET) + at // 8) & _OFFSET
        length = _HEADER + len(piece)
        made.append(
            b"".join(
                (
                    DATAGRAM_HEAD,
                    header[:2],
                    struct.pack(">H", length),
                    header[4:6],
                    struct.pack(">H", place),
                    header[8:10],
                    struct.pack(">H", checksum_of(fixed + length + place)),
                    header[12:],
                    piece,
                )
            )
        )
    return made
