"""One port, two servers: each gets its own clients, the site everybody else. Handshake workers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from qre.dataplane.protocol import SessionConfirmed
from qre.errors import QreError, UserError
from qre.ipc.channel import Channel
from tests.host.test_handshake_server import HERE, PORT
from tests.host.test_handshake_server import site as site  # noqa: PLC0414  a fixture here, too
from tests.support.daemons import until
from tests.support.handshake_server import SHORT_ID, InProcessServer, Visitor
from tests.support.site import PAGE, Caddy, visit

OTHER_ID = bytes.fromhex("fedcba9876543210")
Work = Callable[[InProcessServer, InProcessServer], Awaitable[None]]


def serve_both(site: Caddy, work: Work) -> None:
    """Run ``work`` beside a front and a server that has joined it; prove that no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))

    async def run() -> None:
        dest = ("127.0.0.1", PORT)
        async with (
            InProcessServer(dest, site.authority) as front,
            InProcessServer(dest, site.authority, front=front, short_id=OTHER_ID) as joined,
        ):
            await work(front, joined)
            assert not front.context.failures + joined.context.failures

    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


def sessions(server: InProcessServer) -> list[bytes]:
    return [session.short_id for session in server.dataplane.registry.status(0.0)]


def test_each_server_gets_its_own_clients_at_once(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        third_id = bytes.fromhex("0011223344556677")
        async with InProcessServer(("127.0.0.1", PORT), site.authority, front=front, short_id=third_id) as third:
            visitors = [Visitor(front, SHORT_ID, authority=site.authority)]
            for server, short_id, hosts in ((joined, OTHER_ID, (3, 4)), (third, third_id, (5,))):
                visitors += [
                    Visitor(server, short_id, authority=site.authority, address=f"10.77.0.{host}/24")
                    for host in hosts
                ]
            await asyncio.gather(*(visitor.run() for visitor in visitors))
            assert [visitor.names[-1] for visitor in visitors] == ["HandOverReady"] * 4
            assert sessions(front) == [SHORT_ID]
            assert sessions(joined) == [OTHER_ID] * 2
            assert sessions(third) == [third_id]
            assert not any(server.server.status().strangers for server in (front, joined, third))

    serve_both(site, work)


def test_at_a_port_of_all_addresses_each_client_is_answered_from_the_one_that_it_speaks_to(site: Caddy) -> None:
    """Of our own clients, and of those that are passed on."""

    async def run() -> None:
        dest = ("127.0.0.1", PORT)
        async with (
            InProcessServer(dest, site.authority, listen="0.0.0.0") as front,
            InProcessServer(dest, site.authority, front=front, short_id=OTHER_ID, listen="0.0.0.0") as joined,
        ):
            for server, short_id in ((front, SHORT_ID), (joined, OTHER_ID)):
                visitor = Visitor(server, short_id, authority=site.authority, to="127.0.0.2")
                await visitor.run()
                assert visitor.names[-1] == "HandOverReady"
                assert visitor.sources == {"127.0.0.2"}
                (session,) = server.dataplane.registry.sessions.values()
                assert str(session.install.underlay.local_ip) == "127.0.0.2"
            (session_id,) = joined.dataplane.registry.sessions
            handshakes = front.server._port.guests._guests[1].handshakes
            assert len(handshakes) == 1
            joined.dataplane.tell(SessionConfirmed(session_id=session_id))
            await until(lambda: not handshakes)  # the front hears of its end
            assert not front.context.failures + joined.context.failures

    asyncio.run(run())


def test_strangers_and_repeated_hellos_get_the_site(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        visitor = await Visitor(joined, OTHER_ID, authority=site.authority).run()
        assert visitor.names[-1] == "HandOverReady"
        assert await asyncio.to_thread(visit, HERE, "127.0.0.1", site.authority, front.port) == PAGE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as repeats:
            repeats.bind(("127.0.0.1", 0))
            for data in visitor.sent[:2]:
                repeats.sendto(data, front.address)
            await until(lambda: front.server.status().strangers == 2)
        assert joined.server.status().handshakes == 1

    serve_both(site, work)


def test_a_server_that_left_has_no_clients_here_any_more(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        front.server.guest_leaves(1)
        visitor = await Visitor(joined, OTHER_ID, authority=site.authority).run()
        assert visitor.names[-1] == "Closed"
        assert front.server.status().strangers == 1

    serve_both(site, work)


def test_a_client_that_a_reload_of_its_server_removes_is_turned_away_and_one_that_it_adds_let_in(site: Caddy) -> None:
    """Also before the front has heard of it, whose list is another."""

    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        new_id = bytes.fromhex("00aa00aa00aa00aa")
        after = msgspec.structs.replace(joined.secrets, short_ids=(new_id,))
        await joined.server.reload(after)
        removed = await Visitor(joined, OTHER_ID, authority=site.authority).run()
        assert removed.names[-2:] == ["NotRecognised", "Closed"]
        assert not joined.server.status().handshakes
        front.server.guest_reloads(1, after)
        removed = await Visitor(joined, OTHER_ID, authority=site.authority).run()
        assert removed.names[-2:] == ["NotRecognised", "Closed"]
        added = await Visitor(joined, new_id, authority=site.authority).run()
        assert added.names[-1] == "HandOverReady"
        assert sessions(joined) == [new_id]

    serve_both(site, work)


def test_a_reload_that_gives_two_servers_one_client_is_refused_at_either(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        with pytest.raises(UserError, match=f"server1.*{SHORT_ID.hex()} belongs to another device"):
            front.server.guest_reloads(1, msgspec.structs.replace(joined.secrets, short_ids=(OTHER_ID, SHORT_ID)))
        with pytest.raises(UserError, match="RealityPrivateKey differs"):
            front.server.guest_reloads(1, msgspec.structs.replace(joined.secrets, private_key=bytes(32)))
        with pytest.raises(UserError, match=f"{OTHER_ID.hex()} belongs to another device"):
            await front.server.reload(msgspec.structs.replace(front.secrets, short_ids=(SHORT_ID, OTHER_ID)))
        with pytest.raises(QreError, match="does not know"):
            front.server.guest_reloads(2, joined.secrets)
        for server, short_id in ((front, SHORT_ID), (joined, OTHER_ID)):
            visitor = await Visitor(server, short_id, authority=site.authority).run()
            assert visitor.names[-1] == "HandOverReady"

    serve_both(site, work)


def test_who_may_not_join_is_refused_by_name(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        another_id = bytes.fromhex("0011223344556677")
        for secrets, named in (
            (msgspec.structs.replace(joined.secrets, short_ids=(another_id, SHORT_ID)), SHORT_ID.hex()),
            (msgspec.structs.replace(joined.secrets, short_ids=(OTHER_ID,)), OTHER_ID.hex()),
            (msgspec.structs.replace(joined.secrets, private_key=bytes(32), short_ids=()), "RealityPrivateKey"),
        ):
            ours, theirs = Channel.pair()
            with theirs, pytest.raises(UserError, match=named):
                front.server.guest_joins(2, "server2", secrets, ours.detach())
        visitor = await Visitor(joined, OTHER_ID, authority=site.authority).run()
        assert visitor.names[-1] == "HandOverReady"

    serve_both(site, work)


def test_what_is_no_message_ends_the_feed_and_nothing_else(site: Caddy) -> None:
    async def work(front: InProcessServer, joined: InProcessServer) -> None:
        ours, theirs = Channel.pair()
        third = bytes.fromhex("0011223344556677")
        front.server.guest_joins(
            2, "server2", msgspec.structs.replace(joined.secrets, short_ids=(third,)), ours.detach()
        )
        with theirs:
            for garbage in (b"\xc1", os.urandom(300), bytes(70_000)):
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
                with contextlib.suppress(OSError):
                    theirs.send(garbage)
            await asyncio.sleep(0.05)  # both servers see it meanwhile
        for server, short_id in ((front, SHORT_ID), (joined, OTHER_ID)):
            visitor = await Visitor(server, short_id, authority=site.authority).run()
            assert visitor.names[-1] == "HandOverReady"

    serve_both(site, work)
