"""The handshake worker's server half on real sockets: a real site behind it, real visitors before it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from qre.dataplane.protocol import LossReason, SessionConfirmed, SessionLost
from qre.dest_profile import DestProfile
from qre.ends import WhenDestIsDown
from qre.ipc.messages import CidAdopt, DestProfileReport, RoleState
from qre.profile_secrets import KnownClient, ProfileSecrets
from qre.quic.bounds import Bound
from qre.quic.shadow.server_hello import Obstacle
from qre.wire.frames import ConnectionClose, HandshakeDone, encode_frame, frames_untrusted
from qre.wire.packet import (
    PacketType,
    build_long_header,
    is_initial,
    long_header_destination_cid,
    packets_untrusted,
)
from qre.wire.protection import Protection, initial_secrets
from qre.workers.handshake import acceptance
from qre.workers.handshake.acceptance import MAX_UNCONFIRMED
from qre.workers.handshake.port import flow_books
from qre.workers.handshake.recognition import accepted
from tests.support.daemons import PATIENCE, until
from tests.support.handshake_server import SHORT_ID, Here, InProcessServer, Visitor, free_port
from tests.support.long_headers import long_datagram
from tests.support.namespaces import Namespace
from tests.support.network import ip, own_network
from tests.support.packets import open_initial, packets
from tests.support.site import PAGE, Caddy, make_authority, visit

HERE = cast(Namespace, Here())  # as far as the site needs one
PORT = 4443


@pytest.fixture(scope="module")
def site() -> Iterator[Caddy]:
    """A site on loopback, in a network of our own."""
    with own_network(), tempfile.TemporaryDirectory(prefix="qre-t-") as directory:
        ip("link", "set", "lo", "up")
        made = Caddy(HERE, Path(directory), "127.0.0.1", PORT)
        try:
            yield made
        finally:
            made.stop()


def serve(site: Caddy | None, work: Callable[[InProcessServer], Awaitable[None]], **settings: Any) -> None:
    """Run ``work`` beside a server whose Dest is the site; prove that no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    dest = settings.pop("dest", ("127.0.0.1", PORT))

    async def run() -> None:
        async with InProcessServer(dest, site.authority if site else None, **settings) as server:
            await work(server)
            assert not server.context.failures

    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_browser_gets_the_sites_page(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        page = await asyncio.to_thread(visit, HERE, "127.0.0.1", site.authority, server.port)
        assert page == PAGE
        assert server.server.status().strangers == 1

    serve(site, work)


def test_dest_is_looked_at_and_reported(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        (report,) = [m for m in server.context.sent if isinstance(m, DestProfileReport)]
        assert report.profile.reachable
        assert report.profile.scid_length == 4
        assert report.profile.cipher == "AES_128_GCM_SHA256"
        assert report.profile.ecn == 2, "Caddy marks 1-RTT packets ECT(0)"

    serve(site, work)


def test_a_client_of_ours_never_reaches_the_site_and_becomes_a_session(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server).run()
        assert visitor.names[-1] == "HandOverReady"
        handed_over = visitor.handshake.hand_over(0.0)
        assert [str(a) for a in handed_over.addresses] == ["10.77.0.2/32"]
        (mark,) = server.dataplane.registry.marks()
        assert mark.session_id == handed_over.session_id
        assert mark.connection_id == handed_over.routed_cid
        assert not mark.confirmed
        assert any(isinstance(m, CidAdopt) and m.connection_id == mark.connection_id for m in server.context.asked)
        assert server.server.status().strangers == 0
        server.dataplane.tell(SessionConfirmed(session_id=mark.session_id))
        await until(lambda: server.server.status().up)
        assert any(isinstance(m, RoleState) and m.up for m in server.context.sent)
        assert server.server.status().pending_flows == 0
        server.dataplane.tell(SessionLost(session_id=mark.session_id, reason=LossReason.CLOSED))
        await until(lambda: not server.server.status().up)
        assert any("closed" in line for line in server.context.lines)

    serve(site, work)


@pytest.mark.parametrize("late", [0.0005, 0.01, 0.2])
def test_a_client_whose_second_datagram_is_late_is_recognised_all_the_same(site: Caddy, late: float) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server, hold_second=late).run()
        assert visitor.names[-1] == "HandOverReady", visitor.names
        shown = {data[6 + data[5] + 1 :][: data[6 + data[5]]] for data in visitor.received if data[0] & 0xF0 == 0xC0}
        assert len(shown) == 1, "one source CID, whoever spoke first"

    serve(site, work)


def test_a_stranger_with_our_client_gets_the_site_and_says_so(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        for visitor in (
            Visitor(server, short_id=bytes(8), authority=site.authority),
            Visitor(server, public_key=b"\x09" + bytes(31), authority=site.authority),
        ):
            await visitor.run()
            assert visitor.names == ["NotRecognised", "Closed"]
        assert server.server.status().handshakes == 0

    serve(site, work)


def test_who_forges_an_address_sends_its_owner_three_times_what_he_sent(site: Caddy) -> None:
    """Dest believes a token that it gave to somebody else at our address, and answers in full."""

    async def work(server: InProcessServer) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forged:
            forged.setblocking(False)
            forged.bind(("127.0.0.1", 0))
            hello = long_datagram(PacketType.INITIAL, b"tulips!!", b"me")
            forged.sendto(hello, server.address)
            data = b""
            while data != hello:  # the server itself visits Dest, too
                data, relay = await loop.sock_recvfrom(dest, 2000)
            for _ in range(12):
                dest.sendto(long_datagram(PacketType.HANDSHAKE, b"me", b"dests id"), relay)
            await until(lambda: server.server.status().excesses == {Bound.UNPROVEN.value: 9})
            got = [forged.recv(2000) for _ in range(3)]
            assert sum(map(len, got)) == 3 * len(hello) and not select.select([forged], [], [], 0)[0]
            # it was no forgery: the answer came, and its connection ID is used
            forged.sendto(long_datagram(PacketType.HANDSHAKE, b"dests id", b"me", 60), server.address)
            while data == hello or len(data) != 60:
                data, _ = await loop.sock_recvfrom(dest, 2000)
            for _ in range(12):
                dest.sendto(b"\x40" + bytes(1199), relay)
            for _ in range(12):
                await asyncio.wait_for(loop.sock_recv(forged, 2000), PATIENCE)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dest:
        dest.setblocking(False)
        dest.bind(("127.0.0.1", 0))
        serve(None, work, dest=dest.getsockname())


def test_one_short_id_has_few_unfinished_handshakes_and_the_oldest_gives_way(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        for begun in range(1, 11):
            await Visitor(server).run(timeout=1e-4)  # it sends its first flight and is gone
            await until(lambda begun=begun: server.server.status().handshakes == begun)
        assert server.server.status().excesses == {Bound.HANDSHAKES.value: 10 - MAX_UNCONFIRMED}
        honest = await Visitor(server).run()
        assert honest.names[-1] == "HandOverReady"

    serve(site, work)


def test_a_handshake_that_does_not_come_to_its_session_in_time_is_given_up(
    site: Caddy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "LIFETIME", 0.5)

    async def work(server: InProcessServer) -> None:
        await Visitor(server).run(timeout=1e-4)
        await until(lambda: server.server.status().excesses == {Bound.LIFETIME.value: 1})
        assert server.server._acceptance.timer() is None, "nothing is waited for any more"
        assert any(f"too many {Bound.LIFETIME}" in text for text in server.context.lines)

    serve(site, work, dest=("127.0.0.1", 9), when_dest_is_down=WhenDestIsDown.IMITATE)


def test_a_handshake_that_follows_dest_lasts_until_its_flow_is_idle(
    site: Caddy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Dest repeats to a client that fell silent is Dest's to end."""
    monkeypatch.setattr(acceptance, "LIFETIME", 0.1)

    async def work(server: InProcessServer) -> None:
        await Visitor(server).run(timeout=1e-4)
        await until(lambda: server.server.status().handshakes == 1)
        await asyncio.sleep(0.5)
        assert server.server.status().pending_flows == 1
        await until(lambda: server.server.status().pending_flows == 0)
        assert Bound.LIFETIME.value not in server.server.status().excesses
        assert server.server._acceptance.timer() is None

    serve(site, work, relay_idle_ms=3000)


def test_what_is_injected_into_a_handshake_is_closed_by_the_site(site: Caddy) -> None:
    """With a text, which is Dest's own, and never stock aioquic's silence."""
    cid = b""

    def bad_frame(of_client: bytes) -> bytes:
        nonlocal cid
        cid = long_header_destination_cid(of_client)
        payload = encode_frame(HandshakeDone()).ljust(1100, b"\0")
        header = build_long_header(PacketType.INITIAL, cid, b"", b"\0\x50", 2 + len(payload) + 16)
        return Protection(initial_secrets(cid)[0]).protect(header, 0x50, payload).ljust(1200, b"\0")

    def closes(visitor: Visitor) -> list[ConnectionClose]:
        initials = [data for data in visitor.received if is_initial(data)]
        opened = [open_initial(next(packets(data, 0)), cid, by_client=False) for data in initials]
        frames = [frame for each in opened for frame in frames_untrusted(each.payload)]
        return [frame for frame in frames if isinstance(frame, ConnectionClose)]

    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server, injected=bad_frame).run(timeout=2.0)
        assert server.server.status().handshakes == 1 and server.server.status().strangers == 0
        assert closes(visitor) and closes(visitor)[0].reason
        assert (await Visitor(server).run()).names[-1] == "HandOverReady"

    serve(site, work)


def test_a_handshake_that_costs_too_much_is_left_to_dest(site: Caddy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted, "MOST_CPU", 1e-6)
    monkeypatch.setattr(accepted, "TIMES_ITS_HELLO", 1.0)

    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server, authority=site.authority).run(1.0)
        assert "HandOverReady" not in visitor.names
        assert server.server.status().relay_flows == 1, "what comes goes to Dest and back"
        assert server.server.status().excesses == {Bound.CPU.value: 1}
        assert [text for text in server.context.lines if f"too many {Bound.CPU}" in text]
        monkeypatch.setattr(accepted, "TIMES_ITS_HELLO", 1e6)
        assert (await Visitor(server).run()).names[-1] == "HandOverReady"

    serve(site, work)


def test_after_its_session_is_there_a_handshake_that_costs_too_much_is_not_heard(site: Caddy) -> None:
    """The session goes on: whoever forges datagrams in the client's name ends nothing."""

    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server).run()
        assert visitor.names[-1] == "HandOverReady"
        (one,) = server.server._acceptance._all
        one.may_spend = one.spent
        for _ in range(2):
            one.datagram_received(visitor.sent[-1], time.monotonic())
        assert one.session_id is not None and one in server.server._acceptance._all
        assert server.server.status().excesses == {Bound.CPU.value: 1}
        spent = one.spent
        one.datagram_received(visitor.sent[-1], time.monotonic())
        assert one.spent == spent

    serve(site, work)


def test_a_replayed_first_flight_gets_the_site_also_after_a_restart(site: Caddy) -> None:
    async def replay(server: InProcessServer, flight: list[bytes]) -> None:
        """It goes to the site, which knows the flight's CID and says nothing, as to a visit that it has had."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for data in flight:
                sock.sendto(data, server.address)
            await until(lambda: server.server.status().strangers == 1)

    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server).run()
        assert visitor.names[-1] == "HandOverReady"
        await replay(server, visitor.sent[:2])
        assert server.server.status().strangers == 1
        assert server.server.status().handshakes == 1
        await server.stop()
        await server.start()
        await replay(server, visitor.sent[:2])
        assert server.server.status().strangers == 1
        assert server.server.status().handshakes == 0

    serve(site, work)


def test_an_address_that_is_not_ours_to_give_is_refused(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server, address="10.99.0.2/24").run()
        assert "HandOverReady" not in visitor.names
        assert not server.dataplane.registry.marks()
        assert any("may not have" in line for line in server.context.lines)

    serve(site, work)


def test_a_restarted_worker_finds_its_sessions_and_a_removed_short_id_ends_them(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server).run()
        session_id = visitor.handshake.hand_over(0.0).session_id
        server.dataplane.tell(SessionConfirmed(session_id=session_id))
        await until(lambda: server.server.status().up)
        await server.stop()
        await server.start()
        await until(lambda: bool(server.dataplane.registry.marks()))
        (mark,) = server.dataplane.registry.marks()
        assert mark.session_id == session_id, "a new data plane was given it again"
        await server.server.reload(
            ProfileSecrets(private_key=server.key.private_bytes_raw(), short_ids=(b"another!",))
        )
        await until(lambda: not server.dataplane.registry.marks())
        assert SHORT_ID not in server.store._map[:]

    serve(site, work)


def test_a_handshake_under_way_of_a_removed_client_is_given_up_at_the_reload(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        await Visitor(server).run(timeout=0.01)  # its first flight, and nothing more
        await until(lambda: server.server.status().handshakes == 1)
        private = server.key.private_bytes_raw()
        await server.server.reload(ProfileSecrets(private_key=private, short_ids=(SHORT_ID, b"another!")))
        assert server.server.status().pending_flows == 1, "others are not touched"
        await server.server.reload(ProfileSecrets(private_key=private, short_ids=(b"another!",)))
        assert server.server.status().pending_flows == 0

    serve(site, work)


def test_a_client_with_a_section_is_given_its_address_and_the_networks_behind_it(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        known = KnownClient(
            name="laptop",
            short_id=SHORT_ID,
            address=(ip_interface("10.77.0.2/32"),),
            allowed_ips=(ip_network("192.168.7.0/24"), ip_network("10.77.0.0/16")),
        )
        secrets = ProfileSecrets(private_key=server.key.private_bytes_raw(), short_ids=(SHORT_ID,), clients=(known,))
        await server.server.reload(secrets)
        assert "HandOverReady" not in (await Visitor(server, address="10.77.0.3/24").run()).names
        assert any("client laptop at 127.0.0.1 asked for what" in line for line in server.context.lines)
        visitor = await Visitor(server, address="10.77.0.2/24").run()
        assert visitor.names[-1] == "HandOverReady"
        (session,) = server.dataplane.registry.sessions.values()
        routed = session.install.allowed_ips
        assert routed[0] == ip_network("10.77.0.2/32")
        assert ip_network("192.168.7.0/24") in routed
        assert not any(each.overlaps(ip_network("10.77.0.0/24")) for each in routed[1:])
        server.dataplane.tell(SessionConfirmed(session_id=session.session_id))
        await until(lambda: server.server.status().up)
        assert [(one.short_id, one.name) for one in server.server.status().clients] == [(SHORT_ID, "laptop")]

    serve(site, work)


def test_a_client_waits_while_the_loader_is_restarted(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        server.context.loader_away = True
        task = asyncio.create_task(Visitor(server).run())
        await until(lambda: bool(server.dataplane.registry.marks()))
        await asyncio.sleep(0.3)  # it waits for as long as the loader is away
        assert not task.done()
        server.context.loader_away = False
        assert (await task).names[-1] == "HandOverReady"

    serve(site, work)


def test_a_forgotten_id_of_ours_is_disowned_and_a_strangers_is_dests_matter(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        cid = server.server._cids.like(b"")
        server.server._sessions.compared = True  # the data plane has told what it has: nothing
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"\x41" + cid + os.urandom(60), server.address)
            answer, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_recvfrom(sock, 65_535), PATIENCE)
            assert answer.endswith(server.server._cids.reset_token(cid))
            assert len(answer) < 81
            assert server.server.status().relay_flows == 0
            sock.sendto(b"\x41" + os.urandom(80), server.address)
            await until(lambda: server.server.status().relay_flows == 1)

    serve(site, work, routed_cid_len=20)


def test_a_session_is_reached_by_the_connection_id_that_dest_chose(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server).run()
        handed_over = visitor.handshake.hand_over(0.0)
        chosen = {
            packet.source_cid for data in visitor.received for packet in packets_untrusted(data, short_cid_length=0)
        }
        assert chosen == {handed_over.routed_cid, b""} and len(handed_over.routed_cid) == 4
        (mark,) = server.dataplane.registry.marks()
        assert mark.connection_id == handed_over.routed_cid
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"\x41" + os.urandom(80), server.address)
            await until(lambda: server.server.status().relay_flows == 1)

    serve(site, work)


@pytest.mark.parametrize("options", [[], ["-V"]], ids=["plain", "with a Retry for everybody"])
def test_a_site_of_another_make_is_followed_too(options: list[str], tmp_path: Path) -> None:
    """ngtcp2: X25519, another order of extensions, connection IDs of 18 bytes."""
    authority, port = make_authority(tmp_path), free_port()
    (tmp_path / "index.html").write_text(PAGE)
    with own_network():
        ip("link", "set", "lo", "up")
        where = ["-q", "-d", str(tmp_path), *options, "127.0.0.1", str(port)]
        other = HERE.popen(["gtlsserver", *where, str(tmp_path / "site.key"), str(tmp_path / "site.pem")])
        try:

            async def work(server: InProcessServer) -> None:
                for _ in range(3):
                    visitor = await Visitor(server, authority=authority).run()
                    assert visitor.names[-1] == "HandOverReady"
                    assert len(visitor.handshake.hand_over(0.0).routed_cid) == 18

            async def run() -> None:
                async with InProcessServer(("127.0.0.1", port), authority) as server:
                    await work(server)

            asyncio.run(run())
        finally:
            other.kill()
            other.wait()


def test_a_dest_that_chooses_the_connection_id_of_a_session_is_not_followed(
    site: Caddy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packets could not be told from the session's: the client gets Dest itself."""

    async def work(server: InProcessServer) -> None:
        sessions = server.server._sessions
        monkeypatch.setattr(sessions, "has_connection_id", lambda cid: len(cid) == 4)
        visitor = await Visitor(server, authority=site.authority).run()
        assert "NotRecognised" in visitor.names
        assert server.server.status().strangers == 1
        assert any(Obstacle.TAKEN in line for line in server.context.lines)

    serve(site, work)


# --- the relay alone, against a Dest that echoes ---


class Echo(asyncio.DatagramProtocol):
    """A fake Dest: says everything twice, with ECN marks of its own."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, int]] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))

    @property
    def address(self) -> tuple[str, int]:
        return cast(tuple[str, int], self.sock.getsockname())

    def readable(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, source = self.sock.recvmsg(65_535, 64)
                ecn = ancillary[0][2][0] & 3 if ancillary else 0
                self.seen.append((data, ecn))
                for mark in (3, 0):
                    tos = [(socket.IPPROTO_IP, socket.IP_TOS, mark.to_bytes(4, "little"))]
                    self.sock.sendmsg([data], tos, 0, source)


def test_datagrams_pass_byte_for_byte_with_their_marks_whatever_they_are(site: Caddy) -> None:
    del site  # the network
    echo = Echo()

    async def work(server: InProcessServer) -> None:
        asyncio.get_running_loop().add_reader(echo.sock.fileno(), echo.readable)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            sent = [os.urandom(n) for n in (1, 20, 1199, 1250, 1472, 9000, 60_000)] + [b"", b"\x80\x00\x00\x00\x00"]
            for number, data in enumerate(sent):
                tos = [(socket.IPPROTO_IP, socket.IP_TOS, (number % 4).to_bytes(4, "little"))]
                sock.sendmsg([data], tos, 0, server.address)
                await until(lambda number=number: len(echo.seen) > number)  # type: ignore[misc]
            assert echo.seen == [(data, number % 4) for number, data in enumerate(sent)]
            for data in sent:
                for mark in (3, 0):
                    await until(lambda: bool(select.select([sock], [], [], 0)[0]))
                    got, ancillary, _, _ = sock.recvmsg(65_535, 64)
                    assert (got, ancillary[0][2][0] & 3) == (data, mark)
        asyncio.get_running_loop().remove_reader(echo.sock.fileno())

    with closing(echo.sock):
        looked_at = DestProfile(reachable=True, checked_at=int(time.time()), scid_length=4)
        serve(None, work, dest=echo.address, dest_profile=looked_at)


def test_what_follows_finished_waits_as_long_as_dest_takes_to_answer(site: Caddy) -> None:
    """A visitor's request goes to the site and back: a tunnel's must not be answered sooner."""
    far = free_port()
    road = HERE.popen(
        [sys.executable, "-m", "tests.support.distance", "127.0.0.1", str(far), "127.0.0.1", str(PORT), "60"]
    )
    try:

        async def work(server: InProcessServer) -> None:
            visitor = await Visitor(server).run()
            assert visitor.names[-1] == "HandOverReady"
            later = [at - visitor.finished_at for at in visitor.received_at if at > visitor.finished_at]
            assert not [at for at in later if 0.05 < at < 0.1], "only what Dest had sent already"
            assert [at for at in later if at >= 0.1]

        serve(site, work, dest=("127.0.0.1", far))
    finally:
        road.kill()
        road.wait()


def test_a_long_page_comes_whole_and_in_batches(site: Caddy) -> None:
    page = os.urandom(2_000_000).hex()
    (site.directory / "www" / "long").write_text(page)

    async def work(server: InProcessServer) -> None:
        got = await asyncio.to_thread(visit, HERE, "127.0.0.1", site.authority, server.port, path="long")
        assert got == page

    serve(site, work)


def test_a_dest_that_is_not_there_is_silent_and_nothing_breaks(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        assert not [m for m in server.context.sent if isinstance(m, DestProfileReport) and m.profile.reachable]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(server.address)
            for _ in range(20):
                sock.send(b"garbage")
                await asyncio.sleep(0.005)  # an answer would have come
            with pytest.raises(BlockingIOError):
                sock.recv(100)
        visitor = await Visitor(server, authority=site.authority).run(timeout=1.0)
        assert not visitor.received, "nor to a client: whoever blocks Dest must not see who is answered nevertheless"
        server.server._dest.profile = DestProfile(reachable=False, checked_at=1)
        assert "Dest is down: nobody gets an answer" in server.server.status().text

    serve(site, work, dest=("127.0.0.1", 9))


def test_a_dest_that_is_not_there_is_imitated_where_that_is_wanted(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        visitor = await Visitor(server, authority=site.authority).run()
        assert visitor.names[-1] == "HandOverReady"
        server.server._dest.profile = DestProfile(reachable=False, checked_at=1)
        assert "clients are answered nevertheless, which can be seen" in server.server.status().text

    serve(site, work, dest=("127.0.0.1", 9), when_dest_is_down=WhenDestIsDown.IMITATE)


def test_ten_thousand_sources_are_bounded_and_a_client_gets_through(site: Caddy) -> None:
    async def work(server: InProcessServer) -> None:
        highest = 0
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(400)]
        try:
            for number, sock in enumerate(socks):
                sock.setblocking(False)
                sock.bind((f"127.{1 + number % 40}.{number % 7}.{1 + number % 200}", 0))
            half = (await Visitor(server).run()).sent[0]
            for turn in range(25):
                for sock in socks:
                    with suppress(OSError):
                        sock.sendto(os.urandom(30) if turn % 2 else half, server.address)
                await asyncio.sleep(0.01)  # what the server does with them it does meanwhile
                status = server.server.status()
                highest = max(highest, status.relay_flows + status.pending_flows)
                descriptors = len(os.listdir("/proc/self/fd"))
                assert descriptors < 400 + 100 + 60
            visitor = await Visitor(server, address="10.77.0.9/24").run()
            assert visitor.names[-1] == "HandOverReady"
        finally:
            for sock in socks:
                sock.close()
        assert 50 < highest <= 100 + flow_books.MAX_OURS
        await until(lambda: server.server.status().relay_flows == 0, 5)

    serve(site, work, relay_max_flows=100, relay_max_flows_per_prefix=8, relay_idle_ms=1000)
