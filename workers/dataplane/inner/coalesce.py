"""Received inner packets on their way to the TUN device: checked, and TCP segments joined to super-packets.

What Linux calls GRO. Segments are joined only when nothing but sequence number, IPv4 id, checksums, and PSH or a
smaller size of the last one differs, and only after their checksums were verified: the joined packet gets a new one,
and a packet that arrived corrupted must not become valid. Everything else is written unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.internet_checksum import checksum_of, word_sum
from qre.workers.dataplane.inner.mss import with_mss_lowered_untrusted
from qre.workers.dataplane.inner.offload import (
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    NO_OFFLOAD,
    TCP,
    VNET_HEADER,
)

_HEAD = len(DATAGRAM_HEAD)
_HEAD_SUM = DATAGRAM_HEAD[0]
_MAX_LENGTH = 65_535
_MAX_SEGMENTS = 64
_ACK, _PSH = 0x10, 0x08
#: Where the flow's identity stands: addresses and ports; then sequence number and flags.
_FLOW = {True: slice(_HEAD + 12, _HEAD + 24), False: slice(_HEAD + 8, _HEAD + 44)}
_SEQUENCE = {True: slice(_HEAD + 24, _HEAD + 28), False: slice(_HEAD + 44, _HEAD + 48)}
_FLAGS = {True: _HEAD + 33, False: _HEAD + 53}

Buffers = list[bytes]


def _mask(v4: bool, header: int) -> int:
    """The bits of DATAGRAM_HEAD, IP and TCP headers (``header`` bytes) that the segments of one group share."""
    differing = (2, 3, 4, 5, 10, 11, 24, 25, 26, 27, 33, 36, 37) if v4 else (4, 5, 44, 45, 46, 47, 53, 56, 57)
    kept = bytearray(b"\xff" * header)
    for at in differing:  # length, IPv4 id and sum, sequence, flags, sum
        kept[_HEAD + at] = 0
    return int.from_bytes(kept, "big")


_MASKS = {
    (v4, header): _mask(v4, header)
    for v4, least in ((True, _HEAD + 40), (False, _HEAD + 60))
    for header in range(least, least + 41, 4)
}


class _Group:
    """Segments of one flow that follow each other."""

    __slots__ = ("balance", "flow", "header", "mask", "next", "plaintexts", "shared", "size", "total", "v4")

    def __init__(self, plaintext: bytes, v4: bool, header: int, flow: bytes) -> None:
        self.v4 = v4
        self.flow = flow
        self.header = header  # where the payload begins
        self.size = len(plaintext) - header  # of every segment but the last
        self.mask = _MASKS[v4, header]
        self.shared = int.from_bytes(plaintext[:header], "big") & self.mask
        self.next = (int.from_bytes(plaintext[_SEQUENCE[v4]], "big") + self.size) & 0xFFFFFFFF
        self.total = len(plaintext)
        self.plaintexts = [plaintext]
        # One sum over the whole plaintext checks the checksums: an IPv4 header adds up to 0, the segment balances its
        # pseudo-header; what remains is the head, and what of IPv6's header is not in the pseudo-header.
        addresses = word_sum(flow[:-4])
        beside = 0 if v4 else word_sum(plaintext[_HEAD : _HEAD + 4] + plaintext[_HEAD + 6 : _HEAD + 8])
        own = addresses + TCP if v4 else TCP - beside
        self.balance = own - _HEAD_SUM - (_HEAD + 20 if v4 else 0)

    def is_whole(self, plaintext: bytes) -> bool:
        """Whether the checksums of ``plaintext``, a segment of this flow, are right."""
        total = word_sum(plaintext)
        length = len(plaintext)
        # With its head of 3 bytes, a packet of even length was shifted by word_sum, and one of odd length was not:
        # another 8 bits set both right.
        total <<= 8
        return (total + self.balance + (length if self.v4 else 0)) % 0xFFFF == 0

    def buffers(self) -> Buffers:
        """The buffers to write."""
        first = self.plaintexts[0]
        if len(self.plaintexts) == 1:
            return [NO_OFFLOAD, first[_HEAD:]]
        header, last = self.header, self.plaintexts[-1]
        payload = self.total - header
        v4 = self.v4
        ip_length = 20 if v4 else 40
        head = bytearray(first[_HEAD:header])
        head[ip_length + 13] |= last[_HEAD + ip_length + 13] & _PSH
        tcp_length = len(head) - ip_length + payload
        addresses = head[12:20] if v4 else head[8:40]
        if v4:
            head[2:4] = (ip_length + tcp_length).to_bytes(2, "big")
            head[10:12] = b"\0\0"
            head[10:12] = checksum_of(word_sum(bytes(head[:20]))).to_bytes(2, "big")
        else:
            head[4:6] = tcp_length.to_bytes(2, "big")
        pseudo = (word_sum(bytes(addresses)) + TCP + tcp_length) % 0xFFFF
        head[ip_length + 16 : ip_length + 18] = pseudo.to_bytes(2, "big")
        gso = GSO_TCPV4 if v4 else GSO_TCPV6
        offload = VNET_HEADER.pack(NEEDS_CSUM, gso, len(head), self.size, ip_length, 16)
        return [offload, bytes(head), *[plaintext[header:] for plaintext in self.plaintexts]]


class Deliverer:
    """Turns the plaintexts of one batch into writes. ``drops`` counts what is not delivered."""

    def __init__(self, drops: Counter[str]) -> None:
        self._drops = drops
        self.packets = 0
        self.bytes = 0

    def writes(self, plaintexts: Sequence[bytes], permits: Callable[[bytes], bool], mss_inner: int) -> list[Buffers]:
        """The buffers of each write; ``permits`` tells whether a source address (4 or 16 bytes) may be delivered,
        ``mss_inner`` the largest packet that a SYN's MSS may lead to."""
        self.packets = self.bytes = 0
        groups: dict[bytes, _Group] = {}  # those that may grow
        order: list[_Group | bytes] = []
        for plaintext in plaintexts:
            v4 = plaintext[_HEAD] >> 4 == 4 if len(plaintext) > _HEAD else False
            group = groups.get(plaintext[_FLOW[v4]]) if groups else None
            if group is not None and self._append(group, plaintext):
                if len(plaintext) - group.header < group.size or plaintext[_FLAGS[v4]] & _PSH:
                    del groups[group.flow]
            elif self._is_acceptable(plaintext, v4, permits):
                if group is not None:
                    del groups[group.flow]
                order.append(self._begin(plaintext, v4, groups, mss_inner))
            else:
                continue
            self.packets += 1
            self.bytes += len(plaintext)
        self.bytes -= _HEAD * self.packets
        return [[NO_OFFLOAD, item[_HEAD:]] if isinstance(item, bytes) else item.buffers() for item in order]

    @staticmethod
    def _append(group: _Group, plaintext: bytes) -> bool:
        """Add the segment that the group waits for; False: it is another packet."""
        header, v4, length = group.header, group.v4, len(plaintext)
        if (
            int.from_bytes(plaintext[:header], "big") & group.mask != group.shared
            or int.from_bytes(plaintext[_SEQUENCE[v4]], "big") != group.next
            or plaintext[_FLAGS[v4]] & ~_PSH != _ACK
            or not 0 < length - header <= group.size
            or group.total + length - header > _MAX_LENGTH
            or len(group.plaintexts) >= _MAX_SEGMENTS
            or _length_told(plaintext, v4) != length - _HEAD
            or not group.is_whole(plaintext)
        ):
            return False
        group.plaintexts.append(plaintext)
        group.total += length - header
        group.next = (group.next + length - header) & 0xFFFFFFFF
        return True

    def _is_acceptable(self, plaintext: bytes, v4: bool, permits: Callable[[bytes], bool]) -> bool:
        """Whether it is an IP packet of the stated length from a permitted source."""
        least = 20 if v4 else 40
        if (
            len(plaintext) < _HEAD + least
            or plaintext[_HEAD] >> 4 != (4 if v4 else 6)
            or _length_told(plaintext, v4) != len(plaintext) - _HEAD
        ):
            self._drops["malformed"] += 1
            return False
        if not permits(plaintext[_HEAD + 12 : _HEAD + 16] if v4 else plaintext[_HEAD + 8 : _HEAD + 24]):
            self._drops["source-not-allowed"] += 1
            return False
        return True

    @staticmethod
    def _begin(plaintext: bytes, v4: bool, groups: dict[bytes, _Group], mss_inner: int) -> _Group | bytes:
        """A new group, if this is a TCP segment that others may follow; otherwise the packet by itself."""
        tcp = _HEAD + (20 if v4 else 40)
        if v4:
            joinable = plaintext[_HEAD] == 0x45 and plaintext[_HEAD + 6] & 0xBF == 0 == plaintext[_HEAD + 7]
            joinable = joinable and plaintext[_HEAD + 9] == TCP
        else:
            joinable = plaintext[_HEAD + 6] == TCP
        if not joinable or len(plaintext) < tcp + 20 or plaintext[_FLAGS[v4]] != _ACK:
            return with_mss_lowered_untrusted(plaintext, mss_inner)
        header = tcp + (plaintext[tcp + 12] >> 4) * 4
        if not tcp + 20 <= header < len(plaintext):
            return plaintext
        group = _Group(plaintext, v4, header, plaintext[_FLOW[v4]])
        if not group.is_whole(plaintext):
            return plaintext
        groups[group.flow] = group
        return group


def _length_told(plaintext: bytes, v4: bool) -> int:
    if v4:
        return plaintext[_HEAD + 2] << 8 | plaintext[_HEAD + 3]
    return (plaintext[_HEAD + 4] << 8 | plaintext[_HEAD + 5]) + 40
