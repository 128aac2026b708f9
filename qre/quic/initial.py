"""Opens the Initial packets that a client sends first and puts their CRYPTO data together.

RFC 9000 §17.2.2, RFC 9001 §5.2. Anybody can send these bytes and anybody can read them: the keys come from the packet
itself. Everything here is bounded by its constants and arguments, and raises only ``UntrustedInputError``.
"""

from __future__ import annotations

import hmac
import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.crypto import AEAD, INITIAL_SALT_VERSION_1, CryptoError, HeaderProtection
from aioquic.quic.packet import QuicFrameType, decode_packet_number

from qre.errors import UntrustedInputError
from qre.quic.keys import SECRET_LENGTH, derive, expand_label

QUIC_VERSION_1: Final = 1
#: RFC 9000 §14.1: a server drops Initials in smaller datagrams.
MIN_DATAGRAM: Final = 1200
#: No client that may be answered sends larger ones in its first flight.
MAX_DATAGRAM: Final = 1500
#: RFC 9000 §7.2: a client's first destination CID has at least 8 bytes.
MIN_FIRST_CID: Final = 8
MAX_CID: Final = 20

_LONG_INITIAL: Final = 0xC0  # form 1, fixed bit 1, type 0
_RESERVED_BITS: Final = 0x0C
_ECB: Final = b"aes-128-ecb"
_GCM: Final = b"aes-128-gcm"
#: The next byte that is neither PADDING nor PING.
_NEXT_FRAME: Final = re.compile(rb"[^\x00\x01]")


@dataclass(frozen=True)
class InitialHeader:
    """The clear part of an Initial that lies at ``start`` of a datagram and ends before ``end``."""

    destination_cid: bytes
    source_cid: bytes
    start: int
    packet_number_offset: int  # in the datagram
    end: int


def parse_initial_header_untrusted(datagram: bytes, start: int = 0) -> InitialHeader:
    """An Initial of QUIC v1, and nothing else."""
    buf = Buffer(data=datagram)
    try:
        buf.seek(start)
        if buf.pull_uint8() & 0xF0 != _LONG_INITIAL or buf.pull_uint32() != QUIC_VERSION_1:
            raise UntrustedInputError("datagram", "not an Initial of QUIC version 1")
        destination_cid = buf.pull_bytes(buf.pull_uint8())
        source_cid = buf.pull_bytes(buf.pull_uint8())
        buf.pull_bytes(buf.pull_uint_var())  # token
        length = buf.pull_uint_var()
        offset = buf.tell()
    except BufferReadError as error:
        raise UntrustedInputError("Initial", "its header is cut off") from error
    if len(destination_cid) > MAX_CID or len(source_cid) > MAX_CID or length > len(datagram) - offset:
        raise UntrustedInputError("Initial", "a length beyond its bound")
    return InitialHeader(destination_cid, source_cid, start, offset, offset + length)


class ClientInitialKeys:
    """What a client protects its Initials with (RFC 9001 §5.2)."""

    def __init__(self, destination_cid: bytes) -> None:
        initial = hmac.digest(INITIAL_SALT_VERSION_1, destination_cid, "sha256")
        keys = derive(expand_label(initial, b"client in", SECRET_LENGTH))
        self._aead = AEAD(_GCM, keys.key, keys.iv)
        self._protection = HeaderProtection(_ECB, keys.hp)
        self._expected = 0

    def open_untrusted(self, datagram: bytes, header: InitialHeader) -> bytes:
        """The packet's payload."""
        packet = datagram[header.start : header.end]
        try:
            plain, truncated = self._protection.remove(packet, header.packet_number_offset - header.start)
            number = decode_packet_number(truncated, ((plain[0] & 3) + 1) * 8, self._expected)
            payload: bytes = self._aead.decrypt(packet[len(plain) :], plain, number)
        except CryptoError as error:
            raise UntrustedInputError("Initial", "it does not decrypt") from error
        if plain[0] & _RESERVED_BITS:
            raise UntrustedInputError("Initial", "reserved bits are set")
        self._expected = max(self._expected, number + 1)
        return payload


def crypto_frames_untrusted(payload: bytes) -> list[tuple[int, bytes]]:
    """(offset, data) of every CRYPTO frame; PADDING, PING and ACK are skipped, other frames refused."""
    found: list[tuple[int, bytes]] = []
    buf = Buffer(data=payload)
    try:
        while (match := _NEXT_FRAME.search(payload, buf.tell())) is not None:
            buf.seek(match.start())
            match buf.pull_uint_var():
                case QuicFrameType.CRYPTO:
                    offset = buf.pull_uint_var()
                    found.append((offset, buf.pull_bytes(buf.pull_uint_var())))
                case QuicFrameType.ACK:
                    _skip_ack(buf)
                case _:
                    raise UntrustedInputError("Initial", "a frame that a first flight does not have")
    except BufferReadError as error:
        raise UntrustedInputError("Initial", "a frame is cut off") from error
    return found


def _skip_ack(buf: Buffer) -> None:
    buf.pull_uint_var()
    buf.pull_uint_var()
    ranges = buf.pull_uint_var()
    buf.pull_uint_var()
    for _ in range(ranges):  # ends with the payload at the latest
        buf.pull_uint_var()
        buf.pull_uint_var()


class CryptoStream:
    """Stream data in any order, of bounded length and number of pieces; bytes that came twice must be the same.

    Data that contradicts itself is refused because another reader of the same packets could put a different message
    together (first wins, last wins), and what is authenticated must be what TLS sees.
    """

    def __init__(self, max_bytes: int, max_pieces: int) -> None:
        self._max_bytes = max_bytes
        self._max_pieces = max_pieces
        self._data = bytearray()
        self._pieces: list[tuple[int, int]] = []  # disjoint, apart, ascending [start, end)

    def add_untrusted(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > self._max_bytes:
            raise UntrustedInputError("CRYPTO", "too much data")
        if not data:
            return
        first = bisect_left(self._pieces, offset, key=lambda piece: piece[1])
        last = first
        start, stop = offset, end
        while last < len(self._pieces) and self._pieces[last][0] <= end:
            begin, finish = self._pieces[last]
            low, high = max(begin, offset), min(finish, end)
            if low < high and self._data[low:high] != data[low - offset : high - offset]:
                raise UntrustedInputError("CRYPTO", "data that contradicts itself")
            start, stop = min(start, begin), max(stop, finish)
            last += 1
        if end > len(self._data):
            self._data.extend(bytes(end - len(self._data)))
        self._data[offset:end] = data
        self._pieces[first:last] = [(start, stop)]
        if len(self._pieces) > self._max_pieces:
            raise UntrustedInputError("CRYPTO", "too many pieces")

    @property
    def contiguous(self) -> bytes:
        """What is complete from the beginning on."""
        if not self._pieces or self._pieces[0][0]:
            return b""
        return bytes(self._data[: self._pieces[0][1]])

    @property
    def highest(self) -> int:
        """Where the last byte that came ends."""
        return len(self._data)
