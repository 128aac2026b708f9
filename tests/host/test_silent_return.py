"""A client that comes back and falls silent behind its first flight: what is repeated is what the site repeats."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from qre.quic.client.trust import TrustStore
from qre.visit.probe import probe
from qre.visit.visitor_files import load_fingerprint
from tests.support.handshake_server import InProcessServer
from tests.support.silent_return import Heard, at_timeouts, repeated_to
from tests.support.site import NAME
from tests.support.sites import caddy, site_of

#: Long enough for four probe timeouts.
SECONDS = 2.6
#: When they end (seconds), and how late a busy machine may be.
TIMES, LATE = (0.2, 0.4, 1.0, 2.0), 0.08


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


def test_what_is_repeated_to_a_client_that_came_back_is_what_caddy_repeats() -> None:
    with site_of(caddy) as (port, authority):
        site, ours = (at_timeouts(heard) for heard in asyncio.run(both(port, authority)))
    for timeouts in (site, ours):
        (_, *later) = timeouts
        assert len(later) == len(TIMES), timeouts
        for expected, together in zip(TIMES, later, strict=True):
            assert 0 <= together[0].at - expected + 0.02 < LATE + 0.02, timeouts
    for theirs, each in zip(site[1:], ours[1:], strict=True):
        assert [one.crypto for one in each] == [one.crypto for one in theirs]
        for one, other in zip(each, theirs, strict=True):
            kinds = [[kind for kind, _ in heard.packets] for heard in (one, other)]
            assert kinds[0] == kinds[1]
            assert abs(one.length - other.length) <= 16, "a Handshake packet's GREASE differs"
