"""A visitor, or a client of ours, that sends Finished and its request and then falls silent.

``fall_silent`` returns what comes to it all the same. The caller's thread is in the network that it speaks in.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from ipaddress import ip_interface
from itertools import pairwise
from pathlib import Path
from random import SystemRandom

from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.trust import TrustStore
from qre.quic.resumption.held_ticket import HeldTicket
from qre.visit.visitor_files import load_fingerprint
from tests.support.handshake_server import ADDRESS, SHORT_ID
from tests.support.site import NAME

#: What is sent together comes within this (seconds).
_TOGETHER = 0.02
#: What is longer probes the path's MTU.
_LONGEST = 1200


@dataclass
class Said:
    """``at``: seconds after Finished; ``length``: of the datagram."""

    at: float
    length: int


def client_of(authority: Path, public_key: bytes, ticket: HeldTicket | None = None) -> ClientHandshake:
    """A client's handshake that trusts ``authority``, and begins now; with ``ticket``, of one that comes back."""
    return ClientHandshake(
        server_name=NAME,
        public_key=public_key,
        short_id=SHORT_ID,
        addresses=(ip_interface(ADDRESS),),
        fingerprint=load_fingerprint(),
        trust=TrustStore.from_pem(authority.read_bytes(), "test"),
        unix_time=int(time.time()),
        now=time.monotonic(),
        random=SystemRandom(),
        ticket=ticket,
    )


async def fall_silent(port: int, authority: Path, public_key: bytes, seconds: float) -> list[Said]:
    """What comes for so long after Finished, to a client of ours or, without ``public_key``, to a visitor."""
    peer = ("127.0.0.1", port)
    handshake = client_of(authority, public_key)
    loop = asyncio.get_running_loop()
    said: list[Said] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        handshake.connect(peer, time.monotonic())
        finished, asked, end = None, False, time.monotonic() + 20
        while time.monotonic() < end:
            if not asked:
                handshake.handle_timer(time.monotonic())
                sent = handshake.datagrams_to_send(time.monotonic())
                for data in sent:
                    sock.sendto(data, peer)
                asked = bool(sent) and finished is not None
                if finished is None and handshake._connection.handshake_complete:
                    finished = time.monotonic()
                    end = finished + seconds
            try:
                data, source = await asyncio.wait_for(loop.sock_recvfrom(sock, 65_535), 0.001)
            except TimeoutError:
                continue
            if finished is None:
                handshake.datagram_received(data, source, time.monotonic())
            else:
                said.append(Said(time.monotonic() - finished, len(data)))
    assert finished is not None, "no handshake"
    return said


def repeated(said: list[Said]) -> tuple[int, int]:
    """How much shorter the longest datagram was when it was repeated, and how many came at a timeout, as a rule.

    What is said for the first time is said at once, and so is what the first timeout repeats."""
    said = [each for each in said if each.length <= _LONGEST]
    late = [each for each in said if each.at > 4 * _TOGETHER + said[0].at]
    timeouts = sum(later.at - earlier.at > _TOGETHER for earlier, later in pairwise(late)) + 1
    longest = [max(each.length for each in some) for some in (said, late)]
    return longest[0] - longest[1], round(len(late) / timeouts)
