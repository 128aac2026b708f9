"""The underlay sockets. One uid must create all sockets of a SO_REUSEPORT group, so the supervisor makes them.

All carry QRE's mark, so that no tunnel of this machine takes their packets. DF is set on every datagram (RFC 9000
§14); the ECN field of received datagrams is delivered with them, and the address that they were sent to. A server's
that is bound to :: receives what is sent to every address of this machine, of IPv4, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from qre.addresses import Address, address_ports, host_port
from qre.causes import of_network
from qre.errors import MachineError, UserError
from qre.kernel.udp.control_messages import EVERY, family_of, never_fragment, report_ecn, report_local

#: On every packet of every tunnel: "QRE" in ASCII, well away from the numbers that people and wg-quick use.
MARK: Final = 0x515245
#: More than net.core.*mem_max allows: the data plane worker cannot raise it later. Needs CAP_NET_ADMIN.
_BUFFER = 8 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ANY_PORT = 443  # routes do not depend on it
#: A sockaddr that ends a connection, see connect(2).
_UNSPECIFIED: Final = struct.pack("=H26x", socket.AF_UNSPEC)
#: How often another port is tried where one that was free is taken a moment later.
_FRESH_TRIES: Final = 16
_libc = ctypes.CDLL(None, use_errno=True)
_BOUNDED = {_SO_SNDBUFFORCE: socket.SO_SNDBUF, _SO_RCVBUFFORCE: socket.SO_RCVBUF}


class AbsentAddressError(UserError):
    """This machine does not have the address to bind to, at least not yet."""


def _new(family: int, *, both: bool = False) -> socket.socket:
    """A UDP socket of ``family``; ``both``: one of IPv6 that speaks IPv4, too."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
    return made


def _prepare(made: socket.socket) -> None:
    never_fragment(made)
    report_ecn(made)
    report_local(made)
    mark(made)
    for forced, bounded in _BOUNDED.items():
        try:
            made.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:  # a single handshake of an unprivileged user needs no larger buffer
            made.setsockopt(socket.SOL_SOCKET, bounded, _BUFFER)
    made.setblocking(False)


def mark(made: socket.socket) -> None:
    """QRE's mark on what ``made`` sends."""
    with contextlib.suppress(PermissionError):  # a single handshake of an unprivileged user, beside any tunnel
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)


def server_pair(
    ip: str, port: int, several: Sequence[Address] = (), *, beside_kernel: int | None = None
) -> tuple[socket.socket, socket.socket]:
    """Two sockets of one group on ``ip:port``: slot 0 (user space) and slot 1 (data plane).

    A port that another process uses, even with SO_REUSEPORT, is refused: it would receive our packets. Only the
    socket that qre.ko kept of the previous daemon may exist until ours replaces it: ``beside_kernel`` is then how
    many are bound there. ``several``: Listen's addresses, for which ``ip`` is every one.
    """
    where = _listen(ip, port, several)
    if beside_kernel is None:
        require_free(ip, port, several)
    else:
        _require_present(several)
        if beside_kernel > 1:
            raise _refused(where, OSError(errno.EADDRINUSE, ""))
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
        raise _refused(f"Listen {host_port(ip, port)}", error) from error


def _group_socket(ip: str, port: int) -> socket.socket:
    made = _new(family_of(ip), both=True)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _prepare(made)
        made.bind((ip, port))
    except OSError:
        made.close()
        raise
    return made


def client_socket(ip: str, port: int, family: int = socket.AF_INET) -> socket.socket:
    """A client's underlay socket: a fresh port unless one is given, as a browser would use. ``ip``: empty for every
    address of ``family``."""
    ip = ip or EVERY[family]
    try:
        return _client_socket(ip, port)
    except OSError as error:
        raise _refused(f"client underlay {host_port(ip, port)}", error) from error


def _client_socket(ip: str, port: int) -> socket.socket:
    made = _new(family_of(ip))
    try:
        _prepare(made)
        if port:
            made.bind((ip, port))
        else:
            _bind_afresh(made, ip)
    except OSError:
        made.close()
        raise
    return made


def _bind_afresh(made: socket.socket, ip: str) -> None:
    """Bind to a port of the kernel's choice by its number: one that was not asked for is lost when the socket is
    disconnected."""
    for left in reversed(range(_FRESH_TRIES)):
        with _new(made.family) as probe:
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
    family = family_of(str(peer))
    try:
        with _new(family) as probe:
            mark(probe)
            probe.bind((ip or EVERY[family], 0))
            probe.connect((str(peer), _ANY_PORT))
            return ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return None


def _require_present(addresses: Sequence[Address]) -> None:
    """Raise QreError unless this machine has them: binding to every one says nothing of these."""
    for each in addresses:
        try:
            with _new(family_of(str(each))) as probe:
                probe.bind((str(each), 0))
        except OSError as error:
            raise _refused(f"Listen {each}", error) from error


def require_free(ip: str, port: int, several: Sequence[Address] = ()) -> None:
    """Bind the UDP port, of ``several`` addresses as ``server_pair`` does, and release it. Raises QreError when it
    cannot be bound."""
    _require_present(several)
    try:
        with _new(family_of(ip), both=True) as probe:
            probe.bind((ip, port))
    except OSError as error:
        raise _refused(_listen(ip, port, several), error) from error


def _listen(ip: str, port: int, several: Sequence[Address]) -> str:
    if several:
        return f"Listen {address_ports(several, port)} (together they take the port at every address)"
    return f"Listen {host_port(ip, port)}"


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
