"""What ICMP says about the datagrams of a connected UDP socket: its error queue (IP_RECVERR, IPV6_RECVERR)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

from qre.kernel.udp.control_messages import ECN_SPACE, PKTINFO_SPACE, TIME_SPACE
from qre.kernel.udp.port_errors import Failing, failing_of

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU, _IPV6_MTU = 14, 24
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE = 23, 3
#: sock_extended_err: errno, origin, type, code, padding, info, data. Behind it is who said so.
_ERROR = struct.Struct("=IBBBBII")
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
#: Before it stands what the socket is told of every datagram.
_SPACE: Final = TIME_SPACE + ECN_SPACE + PKTINFO_SPACE + socket.CMSG_SPACE(_ERROR.size + 28)
#: Bytes of a datagram by which it is known again.
KNOWN_BY: Final = 64


@dataclass(frozen=True)
class QueuedError:
    """``begins``: up to KNOWN_BY bytes of the datagram's payload, as many as were quoted. ``mtu``: of what is too
    large."""

    version: int
    failing: Failing
    mtu: int
    begins: bytes


def report_errors(sock: socket.socket) -> None:
    """Have the kernel keep what ICMP says about datagrams of ``sock``. Raises OSError."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        # Of what is too large nothing is said where ICMP's word about the path is not wanted at all; like that one,
        # this lets nothing leave in fragments, whatever was said.
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)


def next_error(sock: socket.socket) -> QueuedError | None:
    """The next one of those that are passed on; None when there is none left."""
    while True:
        try:
            begins, ancillary, _, _ = sock.recvmsg(KNOWN_BY, _SPACE, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) in {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}:
                error = _error_of(data, begins)
                if error is not None:
                    return error


def _error_of(data: bytes, begins: bytes) -> QueuedError | None:
    if len(data) < _ERROR.size:
        return None
    _, origin, kind, code, _, info, _ = _ERROR.unpack_from(data)
    version = {_ORIGIN_ICMP: 4, _ORIGIN_ICMP6: 6}.get(origin)
    failing = failing_of(version, kind, code) if version is not None else None
    if version is None or failing is None:
        return None
    return QueuedError(version, failing, info if failing is Failing.TOO_BIG else 0, begins)


def path_mtu(sock: socket.socket) -> int:
    """The largest packet that the way to the peer of a connected socket takes, as far as this machine knows. Raises
    OSError."""
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
