"""The raw sockets that send ICMP errors in the name of a server's port, and receive nothing. Making one needs
CAP_NET_RAW; sending needs no capability.

The kernel writes the IP header as it does for its own errors: one of this machine's addresses as the source, TTL and
identification from the same places. So no packet with another source, or of another protocol, or to a broadcast
address, can leave by them.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

from qre.kernel.udp.control_messages import Ancillary, family_of, sent_from
from qre.kernel.udp.port_errors import PortError, icmp_error
from qre.kernel.udp.underlay_sockets import mark

#: Names of the descriptors, with family and protocol.
ICMP_SOCKETS: Final = {
    "icmp": (socket.AF_INET, socket.IPPROTO_ICMP),
    "icmpv6": (socket.AF_INET6, socket.IPPROTO_ICMPV6),
}
_IP_MTU_DISCOVER, _PMTUDISC_DONT = 10, 0
_SO_ATTACH_FILTER, _SO_LOCK_FILTER = 26, 44
#: A classic BPF program of one instruction: keep 0 bytes.
_NOTHING: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)
#: Of an error's type of service: what the datagram's leaves of it, and internetwork control (RFC 1812 §4.3.2.5).
_TOS_MASK, _INTERNETWORK_CONTROL = 0x1E, 0xC0


def icmp_socket(name: str) -> socket.socket:
    """One of ``ICMP_SOCKETS``. Raises OSError."""
    family, protocol = ICMP_SOCKETS[name]
    made = socket.socket(family, socket.SOCK_RAW, protocol)
    try:
        program = ctypes.create_string_buffer(_NOTHING, len(_NOTHING))
        filtered = struct.pack("@HP", 1, ctypes.addressof(program))
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)
        made.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        if family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        mark(made)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def icmp_sockets() -> dict[str, int]:
    """The descriptors of all that this machine and this process's capabilities allow."""
    found = {}
    for name in ICMP_SOCKETS:
        try:
            found[name] = icmp_socket(name).detach()
        except OSError:  # without CAP_NET_RAW, or without IPv6
            continue
    return found


def send_error(fd: int, error: PortError) -> None:
    """Send it by the socket for its version of IP. Raises ValueError for what no host would say, OSError as sendmsg
    does."""
    message = icmp_error(error)
    ancillary: list[Ancillary] = [sent_from(str(error.local))]
    family = family_of(str(error.local))
    if family == socket.AF_INET:
        tos = error.traffic & _TOS_MASK | _INTERNETWORK_CONTROL
        ancillary.append((socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", tos)))
    made = socket.socket(family, socket.SOCK_RAW, fileno=fd)
    try:
        made.sendmsg([message], ancillary, 0, (str(error.visitor), 0))
    finally:
        made.detach()
