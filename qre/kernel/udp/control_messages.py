"""Control messages and options of UDP sockets, of IPv4, IPv6, or both (udp(7), ip(7), ipv6(7)).

A socket of IPv6 that is bound to every address speaks IPv4, too (RFC 3493 §3.7): in its place stands a mapped
address, which nothing but these functions and a socket ever sees.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from qre.addresses import Address

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
#: What is too large for the first hop is refused. Of IPv6, no word of ICMP about the path is wanted besides: routes
#: remember those, and qre.ko's packets leave by the same ones. IPv4's do not look at what was remembered.
_PMTUDISC_PROBE, _IPV6_PMTUDISC_INTERFACE = 3, 4
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_IPV6_RECVTCLASS, _IPV6_TCLASS = 66, 67
_UDP_SEGMENT, _UDP_GRO = 103, 104
_SO_TIMESTAMPNS: Final = 35
#: Longer (seconds) no datagram lies in a socket that is read.
_LONGEST_WAIT: Final = 0.1
_TIME = struct.Struct("=qq")  # timespec
_INFO, _INFO6 = struct.Struct("=i4s4s"), struct.Struct("=16si")  # device, address, header's destination; the reverse
_NUMBER = struct.Struct("=i")
_MAPPED: Final = "::ffff:"
#: Every address of this machine, of one family; for a server's socket of IPv6, of both.
EVERY: Final[dict[int, str]] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
#: Room for the control message of the address that a datagram was sent to.
PKTINFO_SPACE: Final = socket.CMSG_SPACE(max(_INFO.size, _INFO6.size))
#: For the time when it came.
TIME_SPACE: Final = socket.CMSG_SPACE(_TIME.size)
#: For the mark of one datagram.
ECN_SPACE: Final = socket.CMSG_SPACE(_NUMBER.size)
#: For the length of what was received at once.
SEGMENT_SPACE: Final = socket.CMSG_SPACE(_NUMBER.size)

#: Level, type and data of a control message.
Ancillary = tuple[int, int, bytes]


# --- addresses ---


def family_of(ip: str) -> int:
    """AF_INET or AF_INET6, of a numeric address."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def is_every(ip: str) -> bool:
    """Whether a socket that is bound to ``ip`` is bound to every address."""
    return ip in EVERY.values()


def every_like(ip: str) -> str:
    """Every address of the same IP version, or none in particular."""
    return EVERY[family_of(ip)]


def as_told(address: Address) -> str:
    """As ``local_of`` has it."""
    return socket.inet_ntop(family_of(str(address)), address.packed)


def source_of(address: Any) -> tuple[str, int]:
    """IP and port of a datagram's source, as recvmsg has it."""
    ip: str = address[0]
    if ip.startswith(_MAPPED) and "." in ip:
        ip = ip[len(_MAPPED) :]
    return ip, address[1]


def as_sockaddr(family: int, address: tuple[str, int]) -> tuple[str, int]:
    """An address as a socket of ``family`` takes it."""
    if family == socket.AF_INET6 and ":" not in address[0]:
        return _MAPPED + address[0], address[1]
    return address


def local_of(ancillary: list[Ancillary]) -> str | None:
    """The local address that a received datagram was sent to, from its control messages."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _INFO.size:
            return socket.inet_ntoa(_INFO.unpack_from(data)[1])
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO and len(data) >= _INFO6.size:
            return source_of((socket.inet_ntop(socket.AF_INET6, _INFO6.unpack_from(data)[0]), 0))[0]
    return None


def sent_from(ip: str) -> Ancillary:
    """The control message that makes a datagram leave with this local address."""
    if ":" in ip:
        return socket.IPPROTO_IPV6, _IPV6_PKTINFO, _INFO6.pack(socket.inet_pton(socket.AF_INET6, ip), 0)
    return socket.IPPROTO_IP, _IP_PKTINFO, _INFO.pack(0, socket.inet_aton(ip), bytes(4))


def report_local(sock: socket.socket, *, on: bool = True) -> None:
    """Have the kernel tell the local address of every datagram that ``sock`` receives. Raises OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, on)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, on)


# --- times ---


def report_time(sock: socket.socket, *, on: bool = True) -> None:
    """Have the kernel tell when every datagram that ``sock`` receives came. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, on)


def age_of(ancillary: list[Ancillary]) -> float:
    """How long ago a datagram came (seconds), from the control messages of recvmsg; 0 where they do not tell, or tell
    nonsense: the clock of the machine may have been set meanwhile."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(value) >= _TIME.size:
            seconds, nanoseconds = _TIME.unpack_from(value)
            age = time.time() - (seconds + nanoseconds / 1e9)
            return age if 0.0 < age < _LONGEST_WAIT else 0.0
    return 0.0


# --- marks ---


def report_ecn(sock: socket.socket) -> None:
    """Have the kernel tell the mark of every datagram that ``sock`` receives. Raises OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)


def ecn_of(ancillary: list[Ancillary]) -> int:
    """The ECN codepoint (RFC 3168) among the control messages of recvmsg; 0 without one, or when it was cut off."""
    for level, kind, value in ancillary:
        if (level == socket.IPPROTO_IP and kind == socket.IP_TOS) or (
            level == socket.IPPROTO_IPV6 and kind == _IPV6_TCLASS
        ):
            return value[0] & 3 if value else 0
    return 0


def with_ecn(family: int, ecn: int) -> list[Ancillary]:
    """The control message for sendmsg that marks one datagram, to an address of ``family``, with ``ecn``."""
    if family == socket.AF_INET6:
        return [(socket.IPPROTO_IPV6, _IPV6_TCLASS, _NUMBER.pack(ecn))]
    return [(socket.IPPROTO_IP, socket.IP_TOS, _NUMBER.pack(ecn))]


# --- sizes ---


def never_fragment(sock: socket.socket) -> None:
    """Don't Fragment on every datagram (RFC 9000 §14), whatever the kernel knows of the path. Raises OSError."""
    _set_discovery(sock, _PMTUDISC_PROBE, _IPV6_PMTUDISC_INTERFACE)


@contextlib.contextmanager
def in_fragments(sock: socket.socket) -> Iterator[None]:
    """What is sent meanwhile may be fragmented by IP; of IPv4, on the way too. Raises OSError."""
    before = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER)
    before6 = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER) if sock.family == socket.AF_INET6 else 0
    _set_discovery(sock, _PMTUDISC_DONT, _PMTUDISC_DONT)
    try:
        yield
    finally:
        _set_discovery(sock, before, before6)


def _set_discovery(sock: socket.socket, ipv4: int, ipv6: int) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, ipv6)
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, ipv4)


def receive_in_batches(sock: socket.socket) -> None:
    """Take datagrams that arrived together as one (UDP_GRO), where the kernel can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)


def segment_of(ancillary: list[Ancillary]) -> int:
    """The length of the datagrams in what was received at once, all but the last; 0: it is one datagram."""
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            return int(_NUMBER.unpack_from(value)[0]) if len(value) >= _NUMBER.size else 0
    return 0


def in_segments(length: int) -> Ancillary:
    """The control message for sendmsg that cuts what is sent into datagrams of this length (UDP_SEGMENT)."""
    return socket.IPPROTO_UDP, _UDP_SEGMENT, length.to_bytes(2, sys.byteorder)
