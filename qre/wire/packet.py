"""QUIC packet headers: the part of a datagram that anyone can read (RFC 8999, RFC 9000 §17).

    long:  1 1 T T R R P P | version 4 | DCID length 1 | DCID | SCID length 1 | SCID | (v1: token, length, number…)
    short: 0 1 S R R K P P | DCID (only the receiver knows its length) | number…

R, K and P of a protected packet mean nothing before header protection is removed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

import msgspec

from qre.errors import UntrustedInputError
from qre.wire.varint import encode_varint, read_varint_untrusted

VERSION_1: Final = 1
MAX_CID: Final = 20
#: A site's connection IDs that are shorter (bytes) do not tell a session's packets from those of strangers.
SHORTEST_DEST_CID: Final = 4
_VERSION_1: Final = VERSION_1.to_bytes(4, "big")
LONG: Final = 0x80
FIXED: Final = 0x40
KEY_PHASE: Final = 0x04
RETRY_TAG_LENGTH: Final = 16
#: The most packets read from one datagram.
MAX_COALESCED: Final = 8


class PacketType(enum.Enum):
    INITIAL = 0
    ZERO_RTT = 1
    HANDSHAKE = 2
    RETRY = 3
    VERSION_NEGOTIATION = 4
    ONE_RTT = 5


class Header(msgspec.Struct, frozen=True):
    """The clear part of one packet at ``start`` of its datagram."""

    type: PacketType
    destination_cid: bytes
    source_cid: bytes
    token: bytes  # Initial's, or Retry's
    start: int
    number_offset: int  # where the protected part begins; the end for those without one
    end: int


def parse_header_untrusted(datagram: bytes, start: int = 0, *, short_cid_length: int) -> Header:
    """The header at ``start``. A version other than 1 is refused, except Version Negotiation."""
    if start >= len(datagram):
        raise UntrustedInputError("packet", "the datagram is empty")
    first = datagram[start]
    if not first & LONG:
        return _short(datagram, start, short_cid_length)
    if start + 7 > len(datagram):
        raise UntrustedInputError("packet", "its header is cut off")
    version = int.from_bytes(datagram[start + 1 : start + 5], "big")
    destination_cid, at = _cid(datagram, start + 5)
    source_cid, at = _cid(datagram, at)
    if version == 0:
        end = len(datagram)
        return Header(PacketType.VERSION_NEGOTIATION, destination_cid, source_cid, b"", start, end, end)
    if version != VERSION_1 or not first & FIXED:
        raise UntrustedInputError("packet", "not of QUIC version 1")
    kind, token = PacketType((first & 0x30) >> 4), b""
    if kind is PacketType.RETRY:
        end = len(datagram)
        if end - at < RETRY_TAG_LENGTH:
            raise UntrustedInputError("Retry", "it is cut off")
        return Header(kind, destination_cid, source_cid, datagram[at : end - RETRY_TAG_LENGTH], start, end, end)
    if kind is PacketType.INITIAL:
        size, at = read_varint_untrusted(datagram, at)
        token, at = datagram[at : at + size], at + size
    length, at = read_varint_untrusted(datagram, at)
    if at + length > len(datagram) or length < 1:
        raise UntrustedInputError("packet", "it ends beyond its datagram")
    return Header(kind, destination_cid, source_cid, token, start, at, at + length)


def is_long(datagram: bytes) -> bool:
    """Whether the first packet has a long header, of any version; False for an empty datagram."""
    return bool(datagram) and datagram[0] & LONG != 0


def is_short(datagram: bytes) -> bool:
    """Whether the first packet has a short header; False for an empty datagram."""
    return bool(datagram) and datagram[0] & LONG == 0


def is_initial(datagram: bytes) -> bool:
    """Whether it begins like an Initial of version 1; the rest is not examined."""
    return datagram[:1] != b"" and datagram[0] & 0xF0 == LONG | FIXED and datagram[1:5] == _VERSION_1


def is_early_data(datagram: bytes) -> bool:
    """Whether it begins like a 0-RTT packet of version 1; the rest is not examined."""
    return datagram[:1] != b"" and datagram[0] & 0xF0 == LONG | FIXED | 0x10 and datagram[1:5] == _VERSION_1


def is_version_1(datagram: bytes) -> bool:
    """Whether a long header is of version 1, which is all that a connection of ours speaks."""
    return datagram[1:5] == _VERSION_1


def long_header_destination_cid(datagram: bytes) -> bytes:
    """The DCID field of a long header, truncated with the datagram (RFC 8999 §5.1)."""
    return datagram[6 : 6 + datagram[5]] if len(datagram) > 5 else b""


def long_header_source_cid(datagram: bytes) -> bytes | None:
    """The SCID field of a long header of version 1 (RFC 9000 §17.2). None for anything else, Version Negotiation too:
    its SCID is the receiver's own choice (§17.2.1)."""
    if not is_long(datagram) or datagram[1:5] != _VERSION_1:
        return None
    try:
        _, at = _cid(datagram, 5)
        source_cid, _ = _cid(datagram, at)
    except UntrustedInputError:
        return None
    return source_cid


def retry_source_cid(datagram: bytes) -> bytes | None:
    """The source CID of a Retry of version 1 (RFC 9000 §17.2.5); None: not a Retry."""
    try:
        header = parse_header_untrusted(datagram, short_cid_length=0)
    except UntrustedInputError:
        return None
    return header.source_cid if header.type is PacketType.RETRY else None


def packets_untrusted(datagram: bytes, *, short_cid_length: int) -> Iterator[Header]:
    """Every packet of a datagram (RFC 9000 §12.2); whatever follows the last one that parses is left out."""
    start = 0
    for _ in range(MAX_COALESCED):
        if start >= len(datagram):
            return
        try:
            header = parse_header_untrusted(datagram, start, short_cid_length=short_cid_length)
        except UntrustedInputError:
            if start:
                return
            raise
        yield header
        start = header.end


def _short(datagram: bytes, start: int, cid_length: int) -> Header:
    at = start + 1 + cid_length
    if not datagram[start] & FIXED or at > len(datagram):
        raise UntrustedInputError("packet", "not a short header, or cut off")
    return Header(PacketType.ONE_RTT, datagram[start + 1 : at], b"", b"", start, at, len(datagram))


def _cid(datagram: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(datagram):
        raise UntrustedInputError("packet", "its header is cut off")
    end = at + 1 + datagram[at]
    if datagram[at] > MAX_CID or end > len(datagram):
        raise UntrustedInputError("packet", "a connection ID that is too long")
    return datagram[at + 1 : end], end


def build_long_header(
    kind: PacketType, destination_cid: bytes, source_cid: bytes, number: bytes, length: int, token: bytes = b""
) -> bytes:
    """A long header of v1 up to and with the packet number; ``length`` counts number, payload and tag."""
    first = LONG | FIXED | kind.value << 4 | len(number) - 1
    parts = [bytes([first]), _VERSION_1]
    for cid in (destination_cid, source_cid):
        parts.append(bytes([len(cid)]) + cid)
    if kind is PacketType.INITIAL:
        parts.append(encode_varint(len(token)) + token)
    # Two bytes whatever the value, as most stacks do: the length is written when the packet is full.
    parts.append((length | 1 << 14).to_bytes(2, "big"))
    return b"".join(parts) + number


def build_short_header(destination_cid: bytes, number: bytes, *, key_phase: int = 0) -> bytes:
    """A short header up to and with the packet number; spin bit 0."""
    return bytes([FIXED | (KEY_PHASE if key_phase else 0) | len(number) - 1]) + destination_cid + number
