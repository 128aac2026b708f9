"""Errors for senders of inner packets that the path cannot carry: ICMP (RFC 792, RFC 1191, RFC 1812 §4.3.2) and
ICMPv6 (RFC 4443).

An answer is written to the TUN device as if the address that the packet was for had sent it: that source passes
reverse-path filters, and NAT on the way translates it. Never answered: ICMP errors, fragments but the first,
multicast and broadcast, and invalid sources. The packets may come from any local program.
"""

from __future__ import annotations

import struct
from typing import Final

from qre.wire.internet_checksum import checksum_of, word_sum

ICMP, ICMPV6 = 1, 58
#: The part of the packet that an answer quotes: RFC 1812 §4.3.2.3 (576 bytes in all), RFC 4443 §2.4 (1,280 in all).
_QUOTE: Final = {4: 576 - 28, 6: 1280 - 48}
#: ICMP types that are not errors: echo, router discovery, timestamp, information, address mask; RFC 792, 950, 1256.
_ICMP_QUERIES: Final = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18})
#: RFC 8200 §4: hop-by-hop, routing, fragment, destination options; and mobility, HIP, shim6.
_EXTENSIONS: Final = frozenset({0, 43, 44, 60, 135, 139, 140})
_FRAGMENT: Final = 44
_MAX_EXTENSIONS: Final = 8
_ICMP_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4
_ICMPV6_UNREACHABLE, _ICMPV6_PROHIBITED, _ICMPV6_TOO_BIG = 1, 1, 2
_HOPS: Final = 64
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_IPV6: Final = struct.Struct(">IHBB16s16s")


def may_be_answered_untrusted(packet: bytes) -> bool:
    """Whether an ICMP error may be sent about this IP packet (or the beginning of one)."""
    if len(packet) >= 28 and packet[0] >> 4 == 4:
        return _ipv4_may_untrusted(packet)
    return len(packet) >= 48 and packet[0] >> 4 == 6 and _ipv6_may_untrusted(packet)


def _ipv4_may_untrusted(packet: bytes) -> bool:
    source, destination = packet[12:16], packet[16:20]
    if source[0] in {0, 127} or source[0] >= 224 or destination[0] >= 224:
        return False
    if (packet[6] << 8 | packet[7]) & 0x1FFF:
        return False
    at = (packet[0] & 0x0F) * 4
    return at >= 20 and at < len(packet) and (packet[9] != ICMP or packet[at] in _ICMP_QUERIES)


def _ipv6_may_untrusted(packet: bytes) -> bool:
    source, destination = packet[8:24], packet[24:40]
    if source == bytes(16) or source == bytes(15) + b"\1" or source[0] == 0xFF or destination[0] == 0xFF:
        return False
    kind, at = packet[6], 40
    for _ in range(_MAX_EXTENSIONS):
        if kind not in _EXTENSIONS:
            return at < len(packet) and (kind != ICMPV6 or packet[at] >= 128)
        if at + 8 > len(packet) or (kind == _FRAGMENT and (packet[at + 2] << 8 | packet[at + 3]) >> 3):
            return False
        kind, at = packet[at], at + (8 if kind == _FRAGMENT else 8 * (packet[at + 1] + 1))
    return False


def quote(packet: bytes) -> bytes:
    """The part of the packet that an answer quotes."""
    return packet[: _QUOTE[packet[0] >> 4]]


def flow_of(quoted: bytes) -> bytes:
    """The key of a packet's flow: protocol, addresses and, in most protocols, ports."""
    return quoted[9:10] + quoted[12:24] if quoted[0] >> 4 == 4 else quoted[6:7] + quoted[8:44]


def too_big(quoted: bytes, mtu: int) -> bytes:
    """The ICMP packet to the sender of ``quoted``, a quote of an IPv4 or IPv6 packet, with the largest size that
    fits."""
    if quoted[0] >> 4 == 4:
        return _icmp(quoted, _ICMP_UNREACHABLE, _FRAGMENTATION_NEEDED, mtu)
    return _icmpv6(quoted, _ICMPV6_TOO_BIG, 0, mtu)


def ipv6_refused(quoted: bytes) -> bytes:
    """The ICMPv6 packet to the sender of an IPv6 packet: administratively prohibited."""
    return _icmpv6(quoted, _ICMPV6_UNREACHABLE, _ICMPV6_PROHIBITED, 0)


def _icmp(quoted: bytes, kind: int, code: int, value: int) -> bytes:
    body = struct.pack(">I", value) + quoted
    message = struct.pack(">BBH", kind, code, checksum_of((kind << 8 | code) + word_sum(body))) + body
    source, destination = quoted[16:20], quoted[12:16]
    # Precedence 6 as RFC 1812 §4.3.2.5 says; Don't Fragment, so the identification is irrelevant.
    fields = (0x45, 0xC0, 20 + len(message), 0, 0x4000, _HOPS, ICMP)
    check = checksum_of(word_sum(_IPV4.pack(*fields, 0, source, destination)))
    return _IPV4.pack(*fields, check, source, destination) + message


def _icmpv6(quoted: bytes, kind: int, code: int, value: int) -> bytes:
    body = struct.pack(">I", value) + quoted
    source, destination = quoted[24:40], quoted[8:24]
    length = 4 + len(body)
    pseudo = word_sum(source + destination) + length + ICMPV6
    message = struct.pack(">BBH", kind, code, checksum_of(pseudo + (kind << 8 | code) + word_sum(body))) + body
    return _IPV6.pack(0x60000000, length, ICMPV6, _HOPS, source, destination) + message


class Budget:
    """How many answers may be sent: ``burst`` at once, ``rate`` a second."""

    def __init__(self, rate: float = 100.0, burst: int = 64) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one may be sent now."""
        self._left = min(self._burst, self._left + max(now - self._at, 0.0) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
