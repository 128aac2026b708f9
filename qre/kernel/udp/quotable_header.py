"""How a datagram came: what a UDP socket is told of its IP header, for an ICMP error that quotes it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from qre.kernel.udp.control_messages import Ancillary

_IP_RECVTTL, _IP_TTL, _IP_RECVFRAGSIZE = 12, 2, 25
_IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT, _IPV6_FLOWINFO, _IPV6_RECVFRAGSIZE, _IPV6_TCLASS = 51, 52, 11, 77, 67
_NUMBER = struct.Struct("=i")
#: Room for the control messages beside those of its mark and address.
ARRIVAL_SPACE: Final = socket.CMSG_SPACE(_NUMBER.size) * 3


@dataclass(frozen=True)
class Arrival:
    """``hops``: its TTL or hop limit. ``traffic``: IPv4's type of service; of IPv6 class and flow label. ``whole``:
    it was not in fragments."""

    hops: int
    traffic: int
    whole: bool


class Sent(NamedTuple):
    """A datagram that was sent on, and the control messages with which it had come."""

    data: bytes
    came: list[Ancillary]


def report_arrival(sock: socket.socket) -> None:
    """Have the kernel tell it of every datagram that ``sock`` receives. Raises OSError."""
    if sock.family == socket.AF_INET6:
        for option in (_IPV6_RECVHOPLIMIT, _IPV6_FLOWINFO, _IPV6_RECVFRAGSIZE):
            sock.setsockopt(socket.IPPROTO_IPV6, option, 1)
    for option in (_IP_RECVTTL, _IP_RECVFRAGSIZE):
        sock.setsockopt(socket.IPPROTO_IP, option, 1)


def arrival_of(ancillary: list[Ancillary]) -> Arrival | None:
    """From the control messages of recvmsg; None where they do not tell."""
    hops, traffic, flow, whole = 0, 0, None, True
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == socket.IP_TOS and data:
            traffic = data[0]
        elif level == socket.IPPROTO_IPV6 and kind == _IPV6_FLOWINFO and len(data) >= _NUMBER.size:
            flow = int.from_bytes(data[: _NUMBER.size], "big")
        elif len(data) < _NUMBER.size:
            continue
        elif (level, kind) in {(socket.IPPROTO_IP, _IP_TTL), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)}:
            hops = _NUMBER.unpack_from(data)[0]
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_TCLASS):
            traffic = _NUMBER.unpack_from(data)[0] << 20
        elif (level, kind) in {(socket.IPPROTO_IP, _IP_RECVFRAGSIZE), (socket.IPPROTO_IPV6, _IPV6_RECVFRAGSIZE)}:
            whole = False
    return Arrival(hops, traffic if flow is None else flow, whole) if hops else None
