"""Forty handshakes of ours and forty of strangers at each of three sites: what an observer sees of the server's
flight has the same distribution. What needs a capture (IP header) or a distance (times) is in ``bench.likeness``."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from qre.wire.packet import Header, PacketType, is_long, packets_untrusted
from tests.support.handshake_server import InProcessServer, Visitor
from tests.support.sites import Make, aioquic, caddy, gtlsserver, site_of

EACH, RARE, PAUSE = 40, 8, 0.1
#: Of a Length field of so many bytes (RFC 9000 §16).
_PREFIX = {1: 0, 2: 1, 4: 2}
#: Of the two-sample Kolmogorov-Smirnov test, at p = 0.001: twelve comparisons are made.
CRITICAL = 1.949 * math.sqrt(2 / EACH)


def flight(visitor: Visitor) -> list[bytes]:
    """Up to the last datagram with a Handshake packet, each once: a busy machine makes the site repeat some."""
    long = [number for number, data in enumerate(visitor.received) if is_long(data)]
    return visitor.received[: long[-1] + 1]


def shape(data: bytes) -> tuple[tuple[PacketType, int, int], ...]:
    """Of each packet: its type, the length of its source connection ID, and the bytes of its Length field."""
    packets = packets_untrusted(data, short_cid_length=0)
    return tuple((each.type, len(each.source_cid), _length_size(data, each)) for each in packets)


def _length_size(data: bytes, packet: Header) -> int:
    """The Length field ends where the packet number begins, and says how long the rest is; 0: there is none."""
    if packet.type is PacketType.ONE_RTT:
        return 0
    at, length = packet.number_offset, packet.end - packet.number_offset
    return next(n for n in _PREFIX if int.from_bytes(data[at - n : at], "big") == length | _PREFIX[n] << 8 * n - 2)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The statistic of Kolmogorov and Smirnov: how far the two cumulative distributions are apart at most."""
    return max(
        abs(sum(each <= at for each in one) / len(one) - sum(each <= at for each in other) / len(other))
        for at in {*one, *other}
    )


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
        ours, strangers = (list(map(flight, side)) for side in asyncio.run(both(port, authority)))
    shapes = [Counter(shape(data) for each in side for data in each if is_long(data)) for side in (ours, strangers)]
    for one, other in (shapes, shapes[::-1]):
        assert all(other[each] for each, count in one.items() if count > RARE), shapes
    features = {
        "the first datagram": lambda each: len(each[0]),
        "the last": lambda each: len(each[-1]),
        "all": lambda each: sum(map(len, each)),
        "datagrams": len,
    }
    apart = {
        name: distance([of(each) for each in ours], [of(each) for each in strangers]) for name, of in features.items()
    }
    print(make.__name__, apart, shapes)
    assert all(each < CRITICAL for each in apart.values()), apart
