"""A Dest that is another one at the next visit, and one whose flight is longer than it may send at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from qre.quic.shadow.server_hello import Obstacle
from tests.support.handshake_server import InProcessServer, Visitor
from tests.support.sites import Make, aioquic, caddy, gtlsserver, retrying, site_of, unfollowed
from tests.support.stock_site import authority as long_authority
from tests.support.stock_site import issue

#: What a client sends before it has heard anything, times three (RFC 9000 §8.1).
AT_ONCE = 3 * 2 * 1250


class Changing:
    """A site whose make changes. See ``sites.Make``."""

    def __init__(self, first: Make, second: Make) -> None:
        self._first, self._second = first, second

    def __call__(self, directory: Path, port: int) -> Callable[[], object]:
        self._where = directory, port
        self._stop = self._first(directory, port)
        return self.stop

    def stop(self) -> None:
        self._stop()

    async def change(self) -> None:
        self._stop()
        self._stop = await asyncio.to_thread(self._second, *self._where)


@pytest.mark.parametrize(
    ("first", "second", "cid_length"),
    [
        (caddy, gtlsserver, 18),
        (gtlsserver, caddy, 4),
        (caddy, retrying, 18),
        (retrying, caddy, 4),
        (caddy, aioquic, 8),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_a_dest_of_another_make_than_at_the_last_look_is_followed(first: Make, second: Make, cid_length: int) -> None:
    """Another group, other extensions, another connection ID, another length of its flight."""
    site = Changing(first, second)

    async def run(port: int, authority: Path) -> None:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            before = await Visitor(server, authority=authority).run()
            await site.change()
            after = await Visitor(server, authority=authority, address="10.77.0.3/24").run()
            assert before.names[-1] == after.names[-1] == "HandOverReady"
            assert len(after.handshake.hand_over(0.0).routed_cid) == cid_length

    with site_of(site) as (port, authority):
        asyncio.run(run(port, authority))


def test_a_dest_that_chooses_what_ours_cannot_have_since_the_last_look_is_shown_to_the_client() -> None:
    site = Changing(caddy, unfollowed)

    async def run(port: int, authority: Path) -> None:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            assert (await Visitor(server, authority=authority).run()).names[-1] == "HandOverReady"
            await site.change()
            after = await Visitor(server, authority=authority).run()
            assert "NotRecognised" in after.names
            assert any(Obstacle.SUITE in line for line in server.context.lines)

    with site_of(site) as (port, authority):
        asyncio.run(run(port, authority))


def with_long_certificate(make: Make) -> Make:
    """A certificate with so many names that the flight needs the client's acknowledgement."""

    def start(directory: Path, port: int) -> Callable[[], object]:
        leaf, key = issue(names=600, days=(-10, 800))
        pem = serialization.Encoding.PEM
        (directory / "site.pem").write_bytes(leaf.public_bytes(pem))
        (directory / "site.key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (directory / "ca.pem").write_bytes(long_authority()[0].public_bytes(pem))
        return make(directory, port)

    return start


@pytest.mark.parametrize("make", [gtlsserver, aioquic, retrying], ids=lambda make: make.__name__)
def test_a_flight_that_is_longer_than_dest_may_send_at_once_is_followed(make: Make) -> None:
    async def run(port: int, authority: Path) -> None:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            for number in range(3):
                visitor = await Visitor(server, authority=authority, address=f"10.77.0.{5 + number}/24").run()
                assert visitor.names[-1] == "HandOverReady"
                assert sum(map(len, visitor.received)) > AT_ONCE

    with site_of(with_long_certificate(make)) as (port, authority):
        asyncio.run(run(port, authority))
