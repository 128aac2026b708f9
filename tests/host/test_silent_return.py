"""A client that comes back and falls silent behind its first flight: what is repeated is what the site repeats."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from qre.quic.client.trust import TrustStore
from qre.visit.probe import probe
from qre.visit.visitor_files import load_fingerprint
from tests.support.handshake_server import InProcessServer
from tests.support.silent_return import Heard, repeated_to
from tests.support.site import NAME
from tests.support.sites import caddy, site_of

#: Long enough for four probe timeouts.
SECONDS = 2.6
#: When they end (seconds), and how late a busy machine may be; how early, where the flight itself was late.
TIMES, LATE, EARLY = (0.2, 0.4, 1.0, 2.0), 0.5, 0.08


async def both(port: int, authority: Path) -> tuple[list[Heard], list[Heard]]:
    """What came to a visitor of the site, and to a client of ours."""
    trust = TrustStore.from_pem(authority.read_bytes(), "test")
    dest = (socket.AF_INET, ("127.0.0.1", port))
    profile = await probe(dest, NAME, load_fingerprint(), trust, comes_back=True)
    assert profile.returns
    site = await repeated_to(port, authority, b"", SECONDS)
    async with InProcessServer(("127.0.0.1", port), authority, dest_profile=profile) as server:
        key = server.key.public_key().public_bytes_raw()
        return site, await repeated_to(server.port, authority, key, SECONDS)


def repeated(heard: list[Heard]) -> list[Heard]:
    """What came after the flight, less lone acknowledgements."""
    return [each for each in heard if each.at > TIMES[0] / 2 and {kind for kind, _ in each.packets} != {"1"}]


def test_what_is_repeated_to_a_client_that_came_back_is_what_caddy_repeats() -> None:
    """Two datagrams at each timeout, never too soon."""
    with site_of(caddy) as (port, authority):
        site, ours = map(repeated, asyncio.run(both(port, authority)))
    assert min(len(site), len(ours)) >= 2 * len(TIMES) - 2, (site, ours)
    for number, (theirs, each) in enumerate(zip(site, ours, strict=False)):
        for one in (theirs, each):
            assert -EARLY < one.at - TIMES[number // 2] < LATE, (site, ours)
        assert each.crypto == theirs.crypto
        assert [kind for kind, _ in each.packets] == [kind for kind, _ in theirs.packets]
        assert abs(each.length - theirs.length) <= 16, "a Handshake packet's GREASE differs"
