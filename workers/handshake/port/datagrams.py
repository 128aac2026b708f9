"""Datagrams of a server's port, with the address of ours that each was sent to where the port has several.

A visitor is answered from the address that it speaks to, or it would not know the answer (RFC 9000 §9).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from typing import Final

from qre.kernel.udp.control_messages import (
    PKTINFO_SPACE,
    Ancillary,
    as_sockaddr,
    ecn_of,
    every_like,
    family_of,
    in_fragments,
    in_segments,
    local_of,
    sent_from,
    source_of,
    with_ecn,
)
from qre.kernel.udp.quotable_header import ARRIVAL_SPACE
from qre.workers.handshake.port.flow_parts import Address

_ANCILLARY: Final = socket.CMSG_SPACE(4) * 2 + PKTINFO_SPACE + ARRIVAL_SPACE


def port_socket(fd: int) -> socket.socket:
    """One of the port's sockets, for an event loop."""
    made = socket.socket(fileno=fd)
    made.setblocking(False)
    return made


def receive_into(
    sock: socket.socket, buffer: bytearray, *, ours: Collection[str] | None
) -> tuple[int, Address, int, list[Ancillary]]:
    """Length, visitor, ECN codepoint and control messages of the next datagram. ``ours``: those of this machine's
    addresses at which the port is open, empty for all; None when ``sock`` is bound to one. Raises OSError as recvmsg
    does; for one from port 0: nobody can be answered there; and for one to another address than ours."""
    length, ancillary, _, address = sock.recvmsg_into([buffer], _ANCILLARY)
    source = source_of(address)
    if not source[1]:
        raise OSError(errno.EADDRNOTAVAIL, "source port 0")
    if ours is None:
        return length, source, ecn_of(ancillary), ancillary
    local = local_of(ancillary) or every_like(source[0])
    if ours and local not in ours:  # before the demultiplexer is attached, which closes the port there
        raise OSError(errno.EADDRNOTAVAIL, "not Listen's")
    return length, (*source, local), ecn_of(ancillary), ancillary


def send_to(
    sock: socket.socket,
    visitor: Address,
    data: bytes,
    ecn: int,
    segment: int = 0,
    *,
    whole: bool = False,
    family: int | None = None,
) -> None:
    """Send one datagram, or several of ``segment`` bytes. What is too large for the device goes in fragments, as it
    has come, but for one that is to arrive ``whole``. ``family``: that of ``sock``, for who knows it. Raises OSError
    as sendmsg does."""
    messages = with_ecn(family_of(visitor[0]), ecn) if ecn else []
    if len(visitor) == 3:
        messages.append(sent_from(visitor[2]))
    to = as_sockaddr(sock.family if family is None else family, visitor[:2])
    if segment and segment < len(data):
        try:
            sock.sendmsg([data], [*messages, in_segments(segment)], 0, to)
        except BlockingIOError:
            raise
        except OSError:  # a device that cannot, or a path that is too small
            for at in range(0, len(data), segment):
                _send_one(sock, to, data[at : at + segment], messages)
        return
    _send_one(sock, to, data, messages, whole=whole)


def _send_one(
    sock: socket.socket, to: tuple[str, int], data: bytes, messages: list[Ancillary], *, whole: bool = False
) -> None:
    try:
        if messages:
            sock.sendmsg([data], messages, 0, to)
        else:
            sock.sendto(data, to)
    except OSError as error:
        if whole or error.errno != errno.EMSGSIZE:
            raise
        with in_fragments(sock):
            sock.sendmsg([data], messages, 0, to)
