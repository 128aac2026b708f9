"""A recorded first flight that is repeated while its connection lives: the server does what the site itself does.

gtlsserver and aioquic know the connection as long as it lives, and say nothing. Caddy knows it for three probe
timeouts; then the flight begins another visit.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from qre.quic.handshake_events import HandOverReady
from qre.wire.packet import is_long
from tests.support.handshake_server import InProcessServer
from tests.support.silent_visitor import client_of
from tests.support.sites import Make, aioquic, caddy, gtlsserver, retrying, site_of

#: When the flight is repeated (seconds after Finished), and for how long answers are waited for.
TIMES, PATIENT = (0.8, 2.0), 0.7


async def answers(port: int, authority: Path, public_key: bytes, *, elsewhere: bool, first: int = 0) -> list[bool]:
    """Whether long headers come back at each of ``TIMES``, to where the connection is or to another port. ``first``:
    the first datagram of the flight that is repeated."""
    peer = ("127.0.0.1", port)
    client = client_of(authority, public_key)
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for each in (sock, other):
            each.setblocking(False)
            each.bind(("127.0.0.1", 0))
        client.connect(peer, time.monotonic())
        flight, ready, end = [], False, time.monotonic() + 20
        while not ready and time.monotonic() < end:
            client.handle_timer(time.monotonic())
            for data in client.datagrams_to_send(time.monotonic()):
                sock.sendto(data, peer)
                flight.append(data)
            event = client.next_event()
            finished = client._connection.handshake_complete
            ready = isinstance(event, HandOverReady) if public_key else finished  # a visit would end with its page
            try:
                data, source = await asyncio.wait_for(loop.sock_recvfrom(sock, 65_535), 0.01)
            except TimeoutError:
                continue
            client.datagram_received(data, source, time.monotonic())
        assert ready, "no handshake"
        began, said = time.monotonic(), []
        for at in TIMES:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            chosen = other if elsewhere else sock
            await _received(sock, 0.0)
            for data in flight[first : first + 2]:
                chosen.sendto(data, peer)
            said.append(any(is_long(data) for data in await _received(chosen, PATIENT)))
        return said


async def _received(sock: socket.socket, seconds: float) -> list[bytes]:
    await asyncio.sleep(seconds)
    received = []
    while True:
        try:
            received.append(sock.recv(65_535))
        except BlockingIOError:
            return received


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the same port", "from another port"])
@pytest.mark.parametrize(
    ("make", "first", "told"),
    [(caddy, 0, True), (gtlsserver, 0, False), (aioquic, 0, False), (retrying, 0, True), (retrying, 2, False)],
    ids=["caddy", "gtlsserver", "aioquic", "before a Retry", "behind a Retry"],
)
def test_a_first_flight_that_is_repeated_while_its_connection_lives_has_the_sites_answer(
    make: Make, first: int, told: bool, elsewhere: bool
) -> None:
    async def both(port: int, authority: Path) -> tuple[list[bool], list[bool]]:
        site = await answers(port, authority, b"", elsewhere=elsewhere, first=first)
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            key = server.key.public_key().public_bytes_raw()
            return site, await answers(server.port, authority, key, elsewhere=elsewhere, first=first)

    with site_of(make) as (port, authority):
        site, ours = asyncio.run(both(port, authority))
    assert site[0] is told
    assert ours == site
