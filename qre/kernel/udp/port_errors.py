"""ICMP and ICMPv6 errors about a datagram that came to a server's port (RFC 792, RFC 1191, RFC 4443), as Linux sends
them: what they quote, and how many there are. Sans-IO.

The kernel writes the outer header (``qre.kernel.udp.icmp_sockets``); the quote is written here: the visitor's own
datagram, and its header as it came, as far as a socket is told of that.
"""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict
from typing import Annotated, Final

import msgspec

from qre.addresses import Address
from qre.structs import U16, Message, Port
from qre.wire.internet_checksum import checksum_of, word_sum

#: Bytes of a datagram's payload that Linux quotes: of IPv4 until the whole error has 576, of IPv6 1,280.
QUOTED: Final = {4: 576 - 20 - 8 - 28, 6: 1280 - 40 - 8 - 48}
#: No path has less (RFC 791, RFC 8200 §5).
LEAST_MTU: Final = {4: 68, 6: 1280}
#: IPv4: DF, as every QUIC endpoint sets it (RFC 9000 §14). A socket is told neither of it nor of the identification.
_DONT_FRAGMENT: Final = 0x4000
_UDP: Final = 17
_IPV4, _IPV6 = struct.Struct(">BBHHHBBH4s4s"), struct.Struct(">IHBB16s16s")
_UDP_HEADER, _ICMP = struct.Struct(">HHHH"), struct.Struct(">BBHI")
_UNREACHABLE, _UNREACHABLE6, _TOO_BIG6 = 3, 1, 2


class Failing(enum.StrEnum):
    """Why a datagram did not arrive."""

    NET = "net"
    HOST = "host"
    PORT = "port"
    TOO_BIG = "too-big"
    PROHIBITED = "prohibited"
    NET_PROHIBITED = "net-prohibited"
    HOST_PROHIBITED = "host-prohibited"


#: The code of ICMP's «destination unreachable», and of ICMPv6's, where what is too large has a type of its own.
_CODES: Final = {
    Failing.NET: (0, 0),
    Failing.HOST: (1, 3),
    Failing.PORT: (3, 4),
    Failing.TOO_BIG: (4, None),
    Failing.PROHIBITED: (13, 1),
    Failing.NET_PROHIBITED: (9, 1),
    Failing.HOST_PROHIBITED: (10, 1),
}


def failing_of(version: int, kind: int, code: int) -> Failing | None:
    """What an ICMP error says; None for what is not passed on."""
    if version == 6 and kind == _TOO_BIG6:
        return Failing.TOO_BIG
    if kind != (_UNREACHABLE if version == 4 else _UNREACHABLE6):
        return None
    return next((each for each, codes in _CODES.items() if codes[version == 6] == code), None)


class PortError(Message, frozen=True, kw_only=True):
    """handshake -> bpf_loader, request (server): send the visitor an ICMP error about its datagram. ``hops`` and
    ``traffic`` (IPv4: type of service; IPv6: traffic class and flow label) are those that it came with; ``checksum``
    is UDP's, ``payload`` as much of its ``length`` bytes as is quoted."""

    visitor: Address
    visitor_port: Port
    local: Address
    local_port: Port
    failing: Failing
    mtu: U16 = 0  # of what is too large
    hops: Annotated[int, msgspec.Meta(ge=1, le=255)]
    traffic: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFF)]
    length: Annotated[int, msgspec.Meta(ge=0, le=65_507)]
    checksum: U16
    payload: Annotated[bytes, msgspec.Meta(max_length=max(QUOTED.values()))]


def icmp_error(error: PortError) -> bytes:
    """The ICMP message. Of ICMPv6 the checksum is 0: the kernel, which knows the addresses, writes it. Raises
    ValueError for what no host would say."""
    version = error.visitor.version
    _check(error, version)
    code, code6 = _CODES[error.failing]
    udp = _UDP_HEADER.pack(error.visitor_port, error.local_port, 8 + error.length, error.checksum)
    ends = error.visitor.packed, error.local.packed
    if version == 6:
        head = _IPV6.pack(6 << 28 | error.traffic, 8 + error.length, _UDP, error.hops, *ends)
        told = (_TOO_BIG6, 0) if code6 is None else (_UNREACHABLE6, code6)
        return _ICMP.pack(*told, 0, error.mtu) + head + udp + error.payload
    fields = 0x45, error.traffic, 28 + error.length, 0, _DONT_FRAGMENT, error.hops, _UDP
    quote = _IPV4.pack(*fields, checksum_of(word_sum(_IPV4.pack(*fields, 0, *ends))), *ends) + udp + error.payload
    check = checksum_of(word_sum(_ICMP.pack(_UNREACHABLE, code, 0, error.mtu) + quote))
    return _ICMP.pack(_UNREACHABLE, code, check, error.mtu) + quote


def _check(error: PortError, version: int) -> None:
    if error.local.version != version or (version == 4 and error.traffic > 0xFF):
        raise ValueError("its parts are of different versions of IP")
    if len(error.payload) != min(error.length, QUOTED[version]):
        raise ValueError("its quote has another length than Linux' has")
    whole = error.length + (28 if version == 4 else 48)
    if (error.failing is Failing.TOO_BIG) is not (LEAST_MTU[version] <= error.mtu < whole):
        raise ValueError("its MTU is none that the datagram exceeds")
    if error.failing is not Failing.TOO_BIG and error.mtu:
        raise ValueError("an MTU without need")
    if error.visitor.is_multicast or error.visitor.is_unspecified:
        raise ValueError("nobody has the visitor's address")


def udp_checksum(source: tuple[Address, int], destination: tuple[Address, int], data: bytes) -> int:
    """That of a UDP datagram (RFC 768, RFC 8200 §8.1)."""
    length = 8 + len(data)
    pseudo = source[0].packed + destination[0].packed + struct.pack(">II", length, _UDP)
    whole = pseudo + _UDP_HEADER.pack(source[1], destination[1], length, 0) + data
    return checksum_of(word_sum(whole)) or 0xFFFF


class Limits:
    """How many errors leave: to one address as Linux' (icmp_ratelimit: one a second, six at once), and of all fewer
    than its icmp_msgs_per_sec. What a visitor sends has at least the length of what comes back but for a header."""

    PEER_SECONDS: Final = 1.0
    PEER_BURST: Final = 6
    ALL_PER_SECOND: Final = 100
    ALL_BURST: Final = 50
    #: Addresses that are remembered; the one that was told longest ago makes room.
    MOST_PEERS: Final = 1024

    def __init__(self, now: float) -> None:
        self._left = float(self.ALL_BURST)
        self._filled = now
        self._peers: OrderedDict[Address, tuple[float, float]] = OrderedDict()  # seconds that it has, and since when

    def take(self, peer: Address, now: float) -> bool:
        """Whether one more may be sent to ``peer``, and count it."""
        self._left = min(float(self.ALL_BURST), self._left + (now - self._filled) * self.ALL_PER_SECOND)
        self._filled = now
        most = self.PEER_BURST * self.PEER_SECONDS
        has, since = self._peers.pop(peer, (most, now))
        has = min(most, has + now - since)
        allowed = has >= self.PEER_SECONDS and self._left >= 1.0
        if allowed:
            has -= self.PEER_SECONDS
            self._left -= 1.0
        self._peers[peer] = has, now
        if len(self._peers) > self.MOST_PEERS:
            self._peers.popitem(last=False)
        return allowed
