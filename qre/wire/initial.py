"""Opens the Initial packets that a client sends first and puts their CRYPTO data together.

RFC 9000 §17.2.2, RFC 9001 §5.2. Anyone can send and read these bytes: the keys come from the packet itself.
Everything here is bounded by its constants and arguments, and raises only ``UntrustedInputError``.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final

from qre.errors import UntrustedInputError
from qre.wire.frames import Ack, Crypto, read_frame_untrusted
from qre.wire.overhead import ETHERNET_MTU
from qre.wire.packet import Header, PacketType, parse_header_untrusted
from qre.wire.protection import Protection, client_initial_secret

#: RFC 9000 §14.1: a server drops Initials in smaller datagrams.
MIN_DATAGRAM: Final = 1200
#: A QRE client never sends larger ones in its first flight.
MAX_DATAGRAM: Final = ETHERNET_MTU
#: RFC 9000 §7.2: a client's first destination CID has at least 8 bytes.
MIN_FIRST_CID: Final = 8
_RESERVED_BITS: Final = 0x0C
#: The next byte that is neither PADDING nor PING: a thousand of them, alternating, must cost one search.
_NEXT_FRAME: Final = re.compile(rb"[^\x00\x01]")


def parse_initial_header_untrusted(datagram: bytes, start: int = 0) -> Header:
    """An Initial of QUIC v1, and nothing else."""
    header = parse_header_untrusted(datagram, start, short_cid_length=0)
    if header.type is not PacketType.INITIAL:
        raise UntrustedInputError("datagram", "not an Initial of QUIC version 1")
    return header


class ClientInitialKeys:
    """The keys of a client's Initials (RFC 9001 §5.2)."""

    def __init__(self, destination_cid: bytes) -> None:
        self._protection = Protection(client_initial_secret(destination_cid))
        self._expected = 0

    def open_untrusted(self, datagram: bytes, header: Header) -> bytes:
        """The packet's payload."""
        packet = datagram[header.start : header.end]
        offset = header.number_offset - header.start
        plain, number, payload = self._protection.unprotect_untrusted(packet, offset, self._expected)
        if plain[0] & _RESERVED_BITS:
            raise UntrustedInputError("Initial", "reserved bits are set")
        self._expected = max(self._expected, number + 1)
        return payload


def crypto_frames_untrusted(payload: bytes) -> list[tuple[int, bytes]]:
    """(offset, data) of every CRYPTO frame; PADDING, PING and ACK are skipped, other frames refused."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while (begin := _NEXT_FRAME.search(payload, at)) is not None:
        frame, at = read_frame_untrusted(payload, begin.start())
        if isinstance(frame, Crypto):
            found.append((frame.offset, frame.data))
        elif not isinstance(frame, Ack):
            raise UntrustedInputError("Initial", "a frame that is not allowed in a first flight")
    return found


class CryptoStream:
    """Stream data in any order, of bounded length and number of pieces; bytes that came twice must be the same.

    Data that contradicts itself is refused because another reader of the same packets could put a different message
    together (first wins, last wins), and what is authenticated must be what TLS sees.
    """

    def __init__(self, max_bytes: int, max_pieces: int) -> None:
        self._max_bytes = max_bytes
        self._max_pieces = max_pieces
        self._data = bytearray()
        self._starts: list[int] = []  # of the pieces, which are disjoint, apart, and ascending
        self._ends: list[int] = []

    def add_untrusted(self, offset: int, data: bytes) -> None:
        """Store ``data``. Raises UntrustedInputError for too much data, too many pieces, or a contradiction."""
        end = offset + len(data)
        if end > self._max_bytes:
            raise UntrustedInputError("CRYPTO", "too much data")
        if not data:
            return
        starts, ends, stored = self._starts, self._ends, self._data
        first = last = bisect_left(ends, offset)
        start, stop = offset, end
        while last < len(starts) and starts[last] <= end:
            begin, finish = starts[last], ends[last]
            low = begin if begin > offset else offset
            high = finish if finish < end else end
            if low < high and stored[low:high] != data[low - offset : high - offset]:
                raise UntrustedInputError("CRYPTO", "data that contradicts itself")
            start = begin if begin < start else start
            stop = finish if finish > stop else stop
            last += 1
        if end > len(stored):
            stored.extend(bytes(end - len(stored)))
        stored[offset:end] = data
        starts[first:last] = [start]
        ends[first:last] = [stop]
        if len(starts) > self._max_pieces:
            raise UntrustedInputError("CRYPTO", "too many pieces")

    @property
    def contiguous(self) -> bytes:
        """The bytes from offset 0 up to the first gap."""
        if not self._starts or self._starts[0]:
            return b""
        return bytes(self._data[: self._ends[0]])

    @property
    def highest(self) -> int:
        """The offset behind the last byte received."""
        return len(self._data)
