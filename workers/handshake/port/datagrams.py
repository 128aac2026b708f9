"""Datagrams of a server's port, with the address of ours that each was sent to where the port has several.

A visitor is answered from the address that it speaks to, or it would not know the answer (RFC 9000 §9).
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from qre.kernel.underlay_sockets import (
    PKTINFO_SPACE,
    ecn_of,
    in_fragments,
    in_segments,
    local_of,
    sent_from,
    with_ecn,
)
from qre.workers.handshake.port.flow_parts import Address

ANY: Final = "0.0.0.0"
_ANCILLARY: Final = socket.CMSG_SPACE(4) * 2 + PKTINFO_SPACE


def receive_into(sock: socket.socket, buffer: bytearray, *, wildcard: bool) -> tuple[int, Address, int]:
    """Length, visitor and ECN codepoint of the next datagram. Raises OSError as recvmsg does."""
    length, ancillary, _, (ip, port) = sock.recvmsg_into([buffer], _ANCILLARY)
    source = (ip, port, local_of(ancillary) or ANY) if wildcard else (ip, port)
    return length, source, ecn_of(ancillary)


def send_to(
    sock: socket.socket, visitor: Address, data: bytes, ecn: int, segment: int = 0, *, whole: bool = False
) -> None:
    """Send one datagram, or several of ``segment`` bytes. What is too large for the device goes in fragments, as it
    has come, but for one that is to arrive ``whole``. Raises OSError as sendmsg does."""
    messages = with_ecn(socket.AF_INET, ecn) if ecn else []
    if len(visitor) == 3:
        messages.append(sent_from(visitor[2]))
    if segment and segment < len(data):
        try:
            sock.sendmsg([data], [*messages, in_segments(segment)], 0, visitor[:2])
        except BlockingIOError:
            raise
        except OSError:  # a device that cannot, or a path that is too small
            for at in range(0, len(data), segment):
                _send_one(sock, visitor, data[at : at + segment], messages)
        return
    _send_one(sock, visitor, data, messages, whole=whole)


def _send_one(
    sock: socket.socket, visitor: Address, data: bytes, messages: list[tuple[int, int, bytes]], *, whole: bool = False
) -> None:
    try:
        if messages:
            sock.sendmsg([data], messages, 0, visitor[:2])
        else:
            sock.sendto(data, visitor[:2])
    except OSError as error:
        if whole or error.errno != errno.EMSGSIZE:
            raise
        with in_fragments(sock):
            sock.sendmsg([data], messages, 0, visitor[:2])
