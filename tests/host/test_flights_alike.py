"""Forty handshakes of ours and forty of strangers at each of three sites: what an observer sees of the server's
flight has the same distribution, IP header included. What needs a distance (times) is in ``bench.likeness``."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from qre.wire.packet import is_long
from tests.support.flight_shapes import distance, shape
from tests.support.handshake_server import InProcessServer, Visitor
from tests.support.sites import HERE, Make, aioquic, caddy, gtlsserver, site_of
from tests.support.tcpdump import Datagram, Tcpdump

EACH, RARE, PAUSE = 40, 8, 0.1
#: Of the two-sample Kolmogorov-Smirnov test, at p = 0.001: twelve comparisons are made.
CRITICAL = 1.949 * math.sqrt(2 / EACH)


T = TypeVar("T", bound=Hashable)


def flight(visitor: Visitor) -> list[bytes]:
    """Up to the last datagram with a Handshake packet, each once: a busy machine makes the site repeat some."""
    long = [number for number, data in enumerate(visitor.received) if is_long(data)]
    return visitor.received[: long[-1] + 1]


def headers(visitor: Visitor, seen: list[Datagram]) -> list[tuple[int, int, int, bool]]:
    """ECN mark, identification, TTL and DF of the flight's datagrams, whose number may differ by what is repeated."""
    came = [each for each in seen if each.destination == ("127.0.0.1", visitor.port)]
    return [(each.tos & 3, each.identification, each.ttl, each.dont_fragment) for each in came][
        : len(flight(visitor))
    ]


def assert_alike(ours: Iterable[T], strangers: Iterable[T]) -> None:
    """Nothing is seen on one side alone, but for what is rare."""
    sides = Counter(ours), Counter(strangers)
    print(*sides)
    for one, other in (sides, sides[::-1]):
        assert all(other[each] for each, count in one.items() if count > RARE), sides


@pytest.mark.parametrize("make", [caddy, gtlsserver, aioquic], ids=lambda make: make.__name__)
def test_forty_flights_of_ours_are_as_forty_of_strangers(make: Make) -> None:
    async def both(port: int, authority: Path) -> tuple[list[Visitor], list[Visitor]]:
        ours, strangers = [], []
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            for _ in range(EACH):
                await asyncio.sleep(PAUSE)  # what the other side left to be done is no part of this
                ours.append(await Visitor(server, authority=authority).run())
                await asyncio.sleep(PAUSE)
                strangers.append(await Visitor(server, authority=authority, short_id=bytes(8)).run())
            lines = server.context.lines
        failed = [each.events for each in ours if each.names[-1] != "HandOverReady"]
        assert not failed, (failed, lines)
        assert all("NotRecognised" in each.names for each in strangers)
        return ours, strangers

    with site_of(make) as (port, authority):
        HERE.run("ethtool", "-K", "lo", "tx-udp-segmentation", "off")  # datagrams as they are on a cable
        with Tcpdump(HERE, "lo", authority.with_name("flights.pcap")) as dump:
            visits = asyncio.run(both(port, authority))
        seen = dump.datagrams()
    assert_alike(*([each for one in side for each in headers(one, seen)] for side in visits))
    ours, strangers = (list(map(flight, side)) for side in visits)
    assert_alike(*([shape(data) for each in side for data in each if is_long(data)] for side in (ours, strangers)))
    features = {
        "the first datagram": lambda each: len(each[0]),
        "the last": lambda each: len(each[-1]),
        "all": lambda each: sum(map(len, each)),
        "datagrams": len,
    }
    apart = {
        name: distance([of(each) for each in ours], [of(each) for each in strangers]) for name, of in features.items()
    }
    print(make.__name__, apart)
    assert all(each < CRITICAL for each in apart.values()), apart
