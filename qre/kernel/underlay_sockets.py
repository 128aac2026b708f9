"""The underlay sockets. One uid must create all sockets of a SO_REUSEPORT group, so the supervisor makes them.

All carry QRE's mark, so that no tunnel of this machine takes their packets. DF is set on every datagram (RFC 9000
§14); the ECN field of received datagrams is delivered with them, and the address that they were sent to.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qre.addresses import Address
from qre.causes import of_network
from qre.errors import MachineError, UserError

_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE, IP_PKTINFO = 10, 3, 8
#: On every packet of every tunnel: "QRE" in ASCII, well away from the numbers that people and wg-quick use.
MARK: Final = 0x515245
#: More than net.core.*mem_max allows: the data plane worker cannot raise it later. Needs CAP_NET_ADMIN.
_BUFFER = 8 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PKTINFO = struct.Struct("=i4s4s")  # device, local address, the header's destination
#: Room for that control message.
PKTINFO_SPACE: Final = socket.CMSG_SPACE(_PKTINFO.size)
_IPV6_RECVTCLASS, _IPV6_TCLASS = 66, 67
#: Room for the control message of one datagram.
ECN_SPACE: Final = socket.CMSG_SPACE(4)
_UDP_SEGMENT, _UDP_GRO = 103, 104
_SEGMENT = struct.Struct("=i")
#: Room for the control message of what was received at once.
SEGMENT_SPACE: Final = socket.CMSG_SPACE(_SEGMENT.size)
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_PROBE = 10, 23, 0, 3
_ANY_PORT = 443  # routes do not depend on it
#: A sockaddr that ends a connection, see connect(2).
_UNSPECIFIED: Final = struct.pack("=H14x", socket.AF_UNSPEC)
#: How often another port is tried where one that was free is taken a moment later.
_FRESH_TRIES: Final = 16
_libc = ctypes.CDLL(None, use_errno=True)
_BOUNDED = {_SO_SNDBUFFORCE: socket.SO_SNDBUF, _SO_RCVBUFFORCE: socket.SO_RCVBUF}


class AbsentAddressError(UserError):
    """This machine does not have the address to bind to, at least not yet."""


def _prepare(made: socket.socket) -> None:
    made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    _mark(made)
    for forced, bounded in _BOUNDED.items():
        try:
            made.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:  # a single handshake of an unprivileged user needs no larger buffer
            made.setsockopt(socket.SOL_SOCKET, bounded, _BUFFER)
    made.setblocking(False)


def _mark(made: socket.socket) -> None:
    with contextlib.suppress(PermissionError):  # a single handshake of an unprivileged user, beside any tunnel
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)


def server_pair(ip: str, port: int, *, beside_kernel: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two sockets of one group on ``ip:port``: slot 0 (user space) and slot 1 (data plane).

    A port that another process uses, even with SO_REUSEPORT, is refused: it would receive our packets. Only the
    socket that qre.ko kept of the previous daemon may exist (``beside_kernel``), until ours replaces it.
    """
    where = f"Listen {ip}:{port}"
    try:
        if beside_kernel and bound_sockets(ip, port) > 1:
            raise OSError(errno.EADDRINUSE, "")
    except OSError as error:
        raise _refused(where, error) from error
    if not beside_kernel:
        require_free(ip, port)
    made: list[socket.socket] = []
    try:
        for _ in range(2):
            made.append(_group_socket(ip, port))
    except OSError as error:
        for one in made:
            one.close()
        raise _refused(where, error) from error
    return made[0], made[1]


def group_socket(ip: str, port: int) -> socket.socket:
    """One more socket of the group that is bound to ``ip:port`` already, or the first of a new one."""
    try:
        return _group_socket(ip, port)
    except OSError as error:
        raise _refused(f"Listen {ip}:{port}", error) from error


def _group_socket(ip: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _prepare(made)
        made.bind((ip, port))
    except OSError:
        made.close()
        raise
    return made


def bound_sockets(ip: str, port: int) -> int:
    """The number of UDP sockets in this network namespace that receive packets to ``ip:port``."""
    count = 0
    for line in Path("/proc/self/net/udp").read_text().splitlines()[1:]:
        address, _, number = line.split()[1].partition(":")
        if int(number, 16) == port:
            bound = socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder))
            count += bound == ip or "0.0.0.0" in (bound, ip)
    return count


def client_socket(ip: str, port: int) -> socket.socket:
    """A client's underlay socket: a fresh port unless one is given, as a browser would use."""
    ip = ip or "0.0.0.0"
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        _prepare(made)
        if port:
            made.bind((ip, port))
        else:
            _bind_afresh(made, ip)
    except OSError as error:
        made.close()
        raise _refused(f"client underlay {ip}:{port}", error) from error
    return made


def _bind_afresh(made: socket.socket, ip: str) -> None:
    """Bind to a port of the kernel's choice by its number: one that was not asked for is lost when the socket is
    disconnected."""
    for left in reversed(range(_FRESH_TRIES)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
            port = probe.getsockname()[1]
        try:
            made.bind((ip, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:  # somebody else was quicker
                raise
        else:
            return


def connect_anew(made: socket.socket, peer: tuple[str, int]) -> None:
    """Connect a UDP socket, whether or not it is connected: from the address that the route to ``peer`` has now,
    unless it is bound to one. Its port stays. Raises OSError, and it may be unconnected then."""
    # Python's connect takes addresses of the socket's family alone.
    if _libc.connect(made.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)):
        raise OSError(ctypes.get_errno(), "connect")
    made.connect(peer)


def source_address(ip: str, peer: Address) -> Address | None:
    """The local address that packets of a client's socket come from, which is bound to ``ip`` unless that is empty;
    None when there is no route. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            _mark(probe)
            probe.bind((ip or "0.0.0.0", 0))
            probe.connect((str(peer), _ANY_PORT))
        except OSError:
            return None
        return ipaddress.ip_address(probe.getsockname()[0])


def local_of(ancillary: list[tuple[int, int, bytes]]) -> str | None:
    """The local address that a received datagram was sent to, from its control messages."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _PKTINFO.size:
            return socket.inet_ntoa(_PKTINFO.unpack_from(data)[1])
    return None


def sent_from(ip: str) -> tuple[int, int, bytes]:
    """The control message that makes a datagram leave with this local address."""
    return socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, socket.inet_aton(ip), bytes(4))


def require_free(ip: str, port: int) -> None:
    """Bind the UDP port and release it. Raises QreError when it cannot be bound."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, port))
    except OSError as error:
        raise _refused(f"Listen {ip}:{port}", error) from error


def _refused(where: str, error: OSError) -> UserError | MachineError:
    text = os.strerror(error.errno or 0)
    match error.errno:
        case errno.EADDRINUSE:
            return UserError(where, "another program uses this UDP port", "stop it, or choose another port")
        case errno.EADDRNOTAVAIL:
            return AbsentAddressError(where, "this machine does not have that address", "see `ip addr`")
        case errno.EACCES | errno.EPERM:
            return MachineError(where, text, "CAP_NET_BIND_SERVICE (ports below 1024) or CAP_NET_ADMIN is missing")
        case _:
            return MachineError.of(where, of_network(error.errno))


def report_ecn(sock: socket.socket) -> None:
    """Have the kernel tell the mark of every datagram that ``sock`` receives. Raises OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVTCLASS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)


def ecn_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The ECN codepoint (RFC 3168) among the control messages of recvmsg; 0 without one."""
    for level, kind, value in ancillary:
        if (level == socket.IPPROTO_IP and kind == socket.IP_TOS) or (
            level == socket.IPPROTO_IPV6 and kind == _IPV6_TCLASS
        ):
            return value[0] & 3
    return 0


def with_ecn(family: int, ecn: int) -> list[tuple[int, int, bytes]]:
    """The control message for sendmsg that marks one datagram with ``ecn``."""
    if family == socket.AF_INET6:
        return [(socket.IPPROTO_IPV6, _IPV6_TCLASS, ecn.to_bytes(4, "little"))]
    return [(socket.IPPROTO_IP, socket.IP_TOS, ecn.to_bytes(4, "little"))]


def receive_in_batches(sock: socket.socket) -> None:
    """Take datagrams that arrived together as one (UDP_GRO), where the kernel can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)


def segment_of(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The length of the datagrams in what was received at once, all but the last; 0: it is one datagram."""
    for level, kind, value in ancillary:
        if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
            return _SEGMENT.unpack_from(value)[0] if len(value) >= _SEGMENT.size else 0
    return 0


def in_segments(length: int) -> tuple[int, int, bytes]:
    """The control message for sendmsg that cuts what is sent into datagrams of this length (UDP_SEGMENT)."""
    return socket.IPPROTO_UDP, _UDP_SEGMENT, length.to_bytes(2, sys.byteorder)


@contextlib.contextmanager
def in_fragments(sock: socket.socket) -> Iterator[None]:
    """What is sent meanwhile may be fragmented by IP, on the way too. Raises OSError."""
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
        if sock.family == socket.AF_INET6
        else (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
    )
    sock.setsockopt(level, option, _PMTUDISC_DONT)
    try:
        yield
    finally:
        sock.setsockopt(level, option, _PMTUDISC_PROBE)
