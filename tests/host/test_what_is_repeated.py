"""A client that falls silent behind its request: what the server repeats is what the site itself would."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.handshake_server import InProcessServer
from tests.support.silent_visitor import Said, fall_silent, repeated
from tests.support.sites import Make, aioquic, caddy, gtlsserver, site_of

#: Long enough for six probe timeouts.
SECONDS = 4.5


def both(make: Make) -> tuple[list[Said], list[Said]]:
    """What came to a visitor of the site, and to a client of ours."""

    async def fall(port: int, authority: Path) -> tuple[list[Said], list[Said]]:
        site = await fall_silent(port, authority, b"", SECONDS)
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            key = server.key.public_key().public_bytes_raw()
            return site, await fall_silent(server.port, authority, key, SECONDS)

    with site_of(make) as (port, authority):
        return asyncio.run(fall(port, authority))


@pytest.mark.parametrize(
    ("make", "shorter", "together"),
    [(caddy, {5, 6}, 2), (gtlsserver, {0, 5, 6}, 2), (aioquic, {-1, 0, 4, 5}, 1)],
    ids=["caddy", "gtlsserver", "aioquic"],
)
def test_what_is_repeated_is_without_its_acknowledgement_and_as_many_at_a_timeout_as_the_sites(
    make: Make, shorter: set[int], together: int
) -> None:
    """Lengths differ from visit to visit; what they become does not. aioquic's has a PING more, and may come before
    the longest is said."""
    for said in both(make):
        by, at_a_timeout = repeated(said)
        assert by in shorter and at_a_timeout == together, said
