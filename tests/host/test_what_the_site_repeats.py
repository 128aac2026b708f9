"""A visitor who says his hello and nothing more: what a client of ours gets then, and when, is what the site sends.

Both are watched in the same run, several of each at once.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from qre.wire.packet import PacketType, is_short
from tests.support.flight_shapes import Shape, shape
from tests.support.handshake_server import InProcessServer
from tests.support.silent_visitor import client_of
from tests.support.sites import Make, aioquic, caddy, gtlsserver, site_of

#: One client may have so many handshakes at a time.
EACH, SECONDS = 4, 4.5
#: What is sent together comes within this, and a timer is as late as this on a busy machine (seconds).
_TOGETHER, _LATE = 0.08, 0.1
#: What asks for an acknowledgement in an Initial has so many bytes at least (RFC 9000 §14.1).
_LEAST_INITIAL = 1200
#: By so much lengths of one kind differ from visit to visit: signatures, and a transport parameter of no meaning.
_VARIES = 16


@dataclass
class Burst:
    """What came together: ``at``, in seconds after the hello."""

    at: float
    datagrams: list[bytes] = field(default_factory=list)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(shape(each) for each in self.datagrams)


async def say_hello(port: int, authority: Path, public_key: bytes, wait: float) -> list[Burst]:
    """What comes in SECONDS to a client of ours or, without ``public_key``, to a visitor; without what depends on how
    the halves of the hello come: bare acknowledgements, and 1-RTT packets by themselves. ``wait``: before it begins
    (seconds)."""
    handshake, loop = client_of(authority, public_key), asyncio.get_running_loop()
    handshake.connect(("127.0.0.1", port), time.monotonic())
    hello = handshake.datagrams_to_send(time.monotonic())
    bursts: list[Burst] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        await asyncio.sleep(wait)
        for data in hello:
            sock.send(data)
        began = time.monotonic()
        while (left := began + SECONDS - time.monotonic()) > 0:
            try:
                data = await asyncio.wait_for(loop.sock_recv(sock, 65_535), left)
            except TimeoutError:
                break
            if is_short(data) or (len(data) < _LEAST_INITIAL and shape(data)[0][0] is PacketType.INITIAL):
                continue
            at = time.monotonic() - began
            if not bursts or at - bursts[-1].at > _TOGETHER:
                bursts.append(Burst(at))
            bursts[-1].datagrams.append(data)
    return bursts


def sides(make: Make) -> tuple[list[list[Burst]], list[list[Burst]]]:
    """What came to visitors of the site, and to clients of ours."""

    async def run(port: int, authority: Path) -> list[list[Burst]]:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            key = server.key.public_key().public_bytes_raw()
            visitors = [say_hello(port, authority, b"", 0.1 + number / 5) for number in range(EACH)]
            clients = [say_hello(server.port, authority, key, 0.2 + number / 5) for number in range(EACH)]
            heard = await asyncio.gather(*visitors, *clients)
            assert server.server.status().handshakes == EACH
            return heard

    with site_of(make) as (port, authority):
        heard = asyncio.run(run(port, authority))
    return heard[:EACH], heard[EACH:]


def shapes(visit: list[Burst]) -> tuple[tuple[Shape, ...], ...]:
    return tuple(each.shapes for each in visit)


def usual(side: list[list[Burst]]) -> list[list[Burst]]:
    """The visits that are as most are: a site's last datagram depends on a few bytes of those before."""
    ((most, _),) = Counter(map(shapes, side)).most_common(1)
    return [each for each in side if shapes(each) == most]


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


@pytest.mark.parametrize("make", [caddy, gtlsserver, aioquic], ids=lambda make: make.__name__)
def test_what_is_repeated_to_who_says_no_more_comes_at_the_sites_times_and_in_its_shapes(make: Make) -> None:
    site, ours = map(usual, sides(make))
    for one in (*site, *ours):
        print([(f"{each.at:.3f}", [len(data) for data in each.datagrams], each.shapes) for each in one])
    assert shapes(site[0]) == shapes(ours[0])
    assert all(len(each) > 2 for each in site), "it repeats, again and again"
    for theirs, mine in zip(zip(*site, strict=True), zip(*ours, strict=True), strict=True):
        assert abs(middle([each.at for each in mine]) - middle([each.at for each in theirs])) < _LATE
        for one, other in zip(
            zip(*(each.datagrams for each in theirs), strict=True),
            zip(*(each.datagrams for each in mine), strict=True),
            strict=True,
        ):
            assert abs(middle(list(map(len, one))) - middle(list(map(len, other)))) <= _VARIES
    times = [middle([each.at for each in one]) for one in zip(*site, strict=True)]
    assert all(later - earlier > _LATE for earlier, later in pairwise(times)), "one is told from the next"
