"""Which sockets this network namespace has at a port. Needs no capability.

The kernel is asked by sock_diag(7), which looks at a port's sockets in one piece. /proc/net/udp is read in pages, and
what is bound or closed between two of them shifts the rest: a socket is listed twice, or never. It is read only where
the kernel has no udp_diag (a module that it may be unable to load), until it says the same often enough.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, NamedTuple

from qre.addresses import Address
from qre.kernel.attributes import split_attributes_untrusted
from qre.kernel.socket import NLM_F_DUMP, NetlinkRefusedError, NetlinkSocket

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_EVERY_STATE: Final = 0xFFFFFFFF
_LISTEN: Final = 1 << 10  # TCP_LISTEN
_REQUEST: Final = struct.Struct("=BBBxI2s46x")  # struct inet_diag_req_v2: up to the source port; zeros are any
_ANSWER: Final = struct.Struct("!4xHH16s16s")  # the first part of struct inet_diag_msg
_ANSWER_SIZE: Final = 72
_HEADER: Final = 16  # struct nlmsghdr
_SKV6ONLY: Final = 11  # INET_DIAG_
_ABSENT: Final = frozenset({errno.ENOENT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP})
_TABLES: Final = {4: "/proc/self/net/udp", 6: "/proc/self/net/udp6"}
#: The table is believed when it says the same this many times in a row, and in the end whatever it says.
_AGREEING: Final = 4
_READINGS: Final = 64


class PortSocket(NamedTuple):
    """A socket that is bound to ``address:port``; ``alone``: one of :: for which IPv4 is somebody else's."""

    address: Address
    port: int
    alone: bool


def bound_sockets(ip: str, port: int) -> int:
    """The number of UDP sockets that are bound to ``ip:port``, or to every address of its version. Raises
    MachineError or UntrustedInputError."""
    address = ip_address(ip)
    try:
        bound = [one.address for one in _asked(address.version, socket.IPPROTO_UDP, _EVERY_STATE, port)]
    except NetlinkRefusedError as error:
        if error.code not in _ABSENT:
            raise
        return _agreed(address, port)
    return _matching(bound, address)


def tcp_listeners(version: int) -> list[PortSocket]:
    """Every listening TCP socket of an IP version. Raises MachineError or UntrustedInputError."""
    return _asked(version, socket.IPPROTO_TCP, _LISTEN)


def _asked(version: int, protocol: int, states: int, port: int = 0) -> list[PortSocket]:
    """The kernel's sockets as they are at one moment, of ``port`` or of every one."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    request = _REQUEST.pack(family, protocol, 0, states, port.to_bytes(2, "big"))
    with NetlinkSocket(_NETLINK_SOCK_DIAG) as diag:
        answer = diag.exchange("listing the sockets of ports", _SOCK_DIAG_BY_FAMILY, request, NLM_F_DUMP)
    found = []
    for _, message in answer:
        if len(message) < _HEADER + _ANSWER_SIZE:
            continue
        number, _, source, _ = _ANSWER.unpack_from(message, _HEADER)
        attributes = dict(split_attributes_untrusted(message[_HEADER + _ANSWER_SIZE :]))
        address = IPv4Address(source[:4]) if version == 4 else IPv6Address(source)
        alone = version == 6 and attributes.get(_SKV6ONLY) != b"\0"
        found.append(PortSocket(address, number, alone))
    return found


def _matching(bound: list[Address], address: Address) -> int:
    return sum(one == address or one.is_unspecified or address.is_unspecified for one in bound)


def _agreed(address: Address, port: int) -> int:
    said: list[int] = []
    while len(said) < _READINGS and (len(said) < _AGREEING or len(set(said[-_AGREEING:])) > 1):
        said.append(_matching(_listed(address.version, port), address))
    return said[-1]


def _listed(version: int, port: int) -> list[Address]:
    """The addresses that UDP sockets are bound to at ``port``, by the table of proc(5), which may be torn."""
    bound = []
    for line in Path(_TABLES[version]).read_text().splitlines()[1:]:
        address, _, number = line.split()[1].partition(":")
        if int(number, 16) == port:
            words = (address[at : at + 8] for at in range(0, len(address), 8))
            bound.append(ip_address(b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)))
    return bound
