"""Received inner packets on their way to the TUN device: checked, and TCP segments joined to super-packets.

What Linux calls GRO. Segments are joined only when nothing but sequence number, IPv4 id, checksums, and PSH or a
smaller size of the last one differs, and only after their checksums were verified: the joined packet gets a new one,
and a packet that was broken before it came to us must not become whole. Everything else is written as it came.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence

from qre.workers.dataplane.frames import DATAGRAM_HEAD
from qre.workers.dataplane.offload import (
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CSUM,
    NO_OFFLOAD,
    TCP,
    VNET_HEADER,
    checksum_of,
    word_sum,
)

_HEAD = len(DATAGRAM_HEAD)
_HEAD_SUM = DATAGRAM_HEAD[0]
_MAX_LENGTH = 65_535
_MAX_SEGMENTS = 64
_ACK, _PSH = 0x10, 0x08
#: IPv4 without options, then TCP: version and tos, length, -id-, fragment..protocol, -sum-, addresses and ports,
#: sequence, acknowledgement and offset, flags, window, -sum-, urgent.
_TCP4 = struct.Struct(f">{_HEAD}x2sH2x4s2x12sI5sBH2x2s").unpack_from
#: IPv6 without extension headers, then TCP: version..flow label, length, next header and hop limit, addresses and
#: ports, sequence, acknowledgement and offset, flags, window, -sum-, urgent.
_TCP6 = struct.Struct(f">{_HEAD}x4sH2s36sI5sBH2x2s").unpack_from

Buffers = list[bytes]


class _Group:
    """Segments of one flow that follow each other."""

    __slots__ = ("fixed", "header", "next", "plaintexts", "size", "total")

    def __init__(self, plaintext: bytes, header: int, following: int, fixed: tuple[object, ...]) -> None:
        self.plaintexts = [plaintext]
        self.header = header  # where the payload begins
        self.size = len(plaintext) - header  # of every segment but the last
        self.next = following  # sequence number
        self.fixed = fixed  # header fields that must be equal
        self.total = len(plaintext)

    def buffers(self) -> Buffers:
        """What to write."""
        first = self.plaintexts[0]
        if len(self.plaintexts) == 1:
            return [NO_OFFLOAD, first[_HEAD:]]
        header, last = self.header, self.plaintexts[-1]
        payload = self.total - header
        v4 = first[_HEAD] >> 4 == 4
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

    def writes(self, plaintexts: Sequence[bytes], permits: Callable[[bytes], bool]) -> list[Buffers]:
        """The buffers of each write; ``permits`` tells whether a source address (4 or 16 bytes) may be delivered."""
        self.packets = self.bytes = 0
        groups: dict[bytes, _Group] = {}
        order: list[_Group | bytes] = []
        for plaintext in plaintexts:
            kind = plaintext[_HEAD] >> 4 if len(plaintext) >= _HEAD + 20 else 0
            if kind == 4:
                total, source, candidate = plaintext[5] << 8 | plaintext[6], plaintext[15:19], plaintext[12] == TCP
            elif kind == 6 and len(plaintext) >= _HEAD + 40:
                total, source = (plaintext[7] << 8 | plaintext[8]) + 40, plaintext[11:27]
                candidate = plaintext[9] == TCP
            else:
                self._drops["malformed"] += 1
                continue
            if total != len(plaintext) - _HEAD:
                self._drops["malformed"] += 1
                continue
            if not permits(source):
                self._drops["source-not-allowed"] += 1
                continue
            self.packets += 1
            self.bytes += total
            if not (candidate and self._join(plaintext, kind == 4, groups, order)):
                order.append(plaintext)
        return [[NO_OFFLOAD, item[_HEAD:]] if isinstance(item, bytes) else item.buffers() for item in order]

    @staticmethod
    def _join(plaintext: bytes, v4: bool, groups: dict[bytes, _Group], order: list[_Group | bytes]) -> bool:
        """Take a TCP segment into a group, an old or a new one; False: it must be written alone."""
        tcp = _HEAD + (20 if v4 else 40)
        if len(plaintext) < tcp + 20:
            return False
        begin, _, middle, flow, sequence, acked, flags, window, urgent = (_TCP4 if v4 else _TCP6)(plaintext)
        header = tcp + (acked[4] >> 4) * 4
        payload = len(plaintext) - header
        plain = (not v4 or (begin[0] == 0x45 and middle[:2] in {b"\x40\0", b"\0\0"})) and header >= tcp + 20
        if not plain or flags & ~_PSH != _ACK or payload <= 0:
            groups.pop(flow, None)
            return False
        # One sum over the whole packet: the IPv4 header's is 0, and the segment's balances the pseudo-header's.
        total = int.from_bytes(plaintext, "big") % 0xFFFF
        if len(plaintext) & 1 == 0:  # the head is 3 bytes long: the packet's own length is odd
            total <<= 8
        addresses = word_sum(flow[:8] if v4 else flow[:32])
        ipv6 = 0 if v4 else word_sum(plaintext[_HEAD : _HEAD + 8]) + addresses
        if (total - _HEAD_SUM - ipv6 + addresses + TCP + len(plaintext) - tcp) % 0xFFFF:
            groups.pop(flow, None)
            return False
        fixed = (begin, middle, acked, window, urgent, plaintext[tcp + 20 : header])
        group = groups.get(flow)
        if (
            group is not None
            and sequence == group.next
            and payload <= group.size
            and fixed == group.fixed
            and group.total + payload <= _MAX_LENGTH
            and len(group.plaintexts) < _MAX_SEGMENTS
        ):
            group.plaintexts.append(plaintext)
            group.total += payload
            group.next = (sequence + payload) & 0xFFFFFFFF
        else:
            group = _Group(plaintext, header, (sequence + payload) & 0xFFFFFFFF, fixed)
            groups[flow] = group
            order.append(group)
        if flags & _PSH or payload < group.size:
            del groups[flow]
        return True
