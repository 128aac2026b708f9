"""Which TCP ports of an address something on this machine listens on (sock_diag(7)). Needs no capability."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qre.kernel.attributes import split_attributes_untrusted
from qre.kernel.netfilter.expressions import ANY
from qre.kernel.socket import NLM_F_DUMP, NetlinkSocket

NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_LISTEN: Final = 10  # TCP_LISTEN
_REQUEST: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_ANSWER: Final = struct.Struct("!4xHH16s16s")  # the first part of struct inet_diag_msg
_ANSWER_SIZE: Final = 72
_HEADER: Final = 16  # struct nlmsghdr
_SKV6ONLY: Final = 11  # INET_DIAG_


def taken_ports(address: IPv4Address) -> frozenset[int]:
    """Ports on which connections to ``address`` are answered here; for 0.0.0.0: those to any. Raises MachineError
    or UntrustedInputError."""
    with NetlinkSocket(NETLINK_SOCK_DIAG) as netlink:
        return frozenset(
            port
            for family in (socket.AF_INET, socket.AF_INET6)
            for bound, port in _listening(netlink, family)
            if ANY in (bound, address) or bound == address
        )


def _listening(netlink: NetlinkSocket, family: int) -> Iterator[tuple[IPv4Address, int]]:
    """IPv4 addresses and ports of the listening sockets of a family; those of IPv6 alone are left out."""
    asked = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN)
    for _, message in netlink.exchange("listing TCP listeners", _SOCK_DIAG_BY_FAMILY, asked, NLM_F_DUMP):
        if len(message) < _HEADER + _ANSWER_SIZE:
            continue
        port, _, source, _ = _ANSWER.unpack_from(message, _HEADER)
        if family == socket.AF_INET:
            yield IPv4Address(source[:4]), port
            continue
        bound, attributes = IPv6Address(source), dict(split_attributes_untrusted(message[_HEADER + _ANSWER_SIZE :]))
        if bound.ipv4_mapped is not None:
            yield bound.ipv4_mapped, port
        elif bound == IPv6Address(0) and attributes.get(_SKV6ONLY) == b"\0":
            yield ANY, port
