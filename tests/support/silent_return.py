"""A visitor, or a client of ours, that comes back with a ticket, and falls silent behind its first flight.

``repeated_to`` returns what comes to it all the same. The caller's thread is in the network that it speaks in.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qre.quic.handshake_events import Closed, HandOverReady
from qre.quic.resumption.held_ticket import HeldTicket
from qre.wire.frames import Crypto, frames_untrusted
from qre.wire.packet import PacketType
from qre.wire.protection import Protection, initial_secrets
from tests.support.packets import packets
from tests.support.silent_visitor import client_of

_KINDS = {PacketType.INITIAL: "I", PacketType.HANDSHAKE: "H", PacketType.ONE_RTT: "1"}
#: A request follows the hello within this (seconds).
_FIRST_FLIGHT = 0.012


@dataclass(frozen=True)
class Heard:
    """One datagram. ``at``: seconds after the first one; ``packets``: kind and length of each; ``crypto``: the bytes
    of ServerHello in it, by offset."""

    at: float
    length: int
    packets: tuple[tuple[str, int], ...]
    crypto: tuple[tuple[int, int], ...] = ()


async def _ticket(peer: tuple[str, int], authority: Path, public_key: bytes) -> HeldTicket:
    """What a whole connection brings."""
    loop, handshake = asyncio.get_running_loop(), client_of(authority, public_key)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        handshake.connect(peer, time.monotonic())
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for data in handshake.datagrams_to_send(time.monotonic()):
                sock.sendto(data, peer)
            event = handshake.next_event()
            if isinstance(event, HandOverReady | Closed):
                break
            try:
                data, source = await asyncio.wait_for(loop.sock_recvfrom(sock, 65_535), 0.002)
            except TimeoutError:
                handshake.handle_timer(time.monotonic())
            else:
                handshake.datagram_received(data, source, time.monotonic())
    (ticket, *_), _ = handshake.brought()
    return _without_token(ticket)


def _without_token(ticket: HeldTicket) -> HeldTicket:
    """Without one, as half of them are."""
    return msgspec.structs.replace(ticket, token=b"")


async def repeated_to(port: int, authority: Path, public_key: bytes, seconds: float) -> list[Heard]:
    """What comes for so long to a client of ours that came back or, without ``public_key``, to a visitor."""
    peer = ("127.0.0.1", port)
    ticket = await _ticket(peer, authority, public_key)
    await asyncio.sleep(0.3)
    loop, handshake = asyncio.get_running_loop(), client_of(authority, public_key, ticket)
    heard: list[Heard] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        handshake.connect(peer, time.monotonic())
        began, first, keys = time.monotonic(), None, None
        while time.monotonic() < began + _FIRST_FLIGHT:
            handshake.handle_timer(time.monotonic())
            for data in handshake.datagrams_to_send(time.monotonic()):
                if keys is None:
                    (hello,) = packets(data, 0)
                    keys = Protection(initial_secrets(hello.destination_cid)[1])
                sock.sendto(data, peer)
            await asyncio.sleep(0.0005)
        assert keys is not None
        while time.monotonic() < began + seconds:
            try:
                data = await asyncio.wait_for(loop.sock_recv(sock, 65_535), 0.1)
            except TimeoutError:
                continue
            first = time.monotonic() if first is None else first
            heard.append(_heard(data, time.monotonic() - first, keys))
    return heard


def _heard(data: bytes, at: float, keys: Protection) -> Heard:
    found, crypto = [], []
    for each in packets(data, 0):
        found.append((_KINDS[each.kind], len(each.data)))
        if each.kind is PacketType.INITIAL:
            _, _, payload = keys.unprotect_untrusted(each.data, each.offset, 0)
            said = [frame for frame in frames_untrusted(payload) if isinstance(frame, Crypto)]
            crypto += [(frame.offset, len(frame.data)) for frame in said]
    return Heard(at, len(data), tuple(found), tuple(crypto))
