"""The handshake worker's client half in this process: a real server half at the other end, everything else fake."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import msgspec
import pytest

from qre.causes import Cause
from qre.dataplane.protocol import LossReason, SessionBegun, SessionConfirmed, SessionLost, SessionSilent
from qre.ends import Role, WhenDestIsDown
from qre.errors import MachineError, PeerError
from qre.ipc.channel import Channel
from qre.ipc.messages import Party, RoleState, SocketGranted, SocketRelease, SocketRequest, WorkerConfig
from qre.ipc.worker import WorkerContext
from qre.profile_secrets import ProfileSecrets
from qre.quic.client.trust import TrustStore
from qre.structs import Message
from qre.supervisor.parent.process_settings import empty_memfd
from qre.visit.visitor_files import load_fingerprint
from qre.workers.handshake.client import Client
from qre.workers.handshake.early_attempt import EarlyAttempt
from qre.workers.handshake.sessions.secrets import SecretsStore
from tests.support.daemons import until
from tests.support.handshake_server import SHORT_ID, FakeContext, FakeDataplane, InProcessServer, free_port
from tests.support.site import NAME

IMITATE = WhenDestIsDown.IMITATE


class Supervisor(FakeContext):
    """A fake supervisor: hands out real sockets."""

    client: Client
    refusing = False
    granted: dict[int, socket.socket]

    async def request(self, to: Party, message: Message, timeout: float = 5.0) -> Message:
        assert isinstance(message, SocketRequest)
        if self.refusing:
            raise MachineError("client socket", "too many are in use")
        number = len(self.granted) + 1
        made = self.granted[number] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        self.client.socket_arrived(number, os.dup(made.fileno()))
        return SocketGranted(number=number)


class InProcessClient:
    """``async with`` it."""

    def __init__(self, port: int, public_key: bytes) -> None:
        self.secrets_fd = empty_memfd("session_secrets")
        self.secrets = ProfileSecrets(public_key=public_key, short_id=SHORT_ID)
        config = WorkerConfig(
            profile="client0",
            device="client0",
            role=Role.CLIENT,
            address=(ip_interface("10.77.0.2/24"),),
            mtu=1380,
            keepalive_s=0,
            allowed_ips=(),
            server_name=NAME,
            endpoint_host="127.0.0.1",
            endpoint_port=port,
            reconnect_min_ms=50,
            reconnect_max_ms=200,
        )
        self.context = Supervisor(config, {}, TrustStore([], "nobody"))
        self.context.granted = {}
        self.dataplane: FakeDataplane | None = None

    async def start(self) -> None:
        context = cast(WorkerContext, self.context)  # a fake one
        self.store = SecretsStore(self.secrets_fd)
        self.client = Client(context, self.secrets, self.store, load_fingerprint(), TrustStore([], "nobody"))
        self.context.client = self.client
        await self.client.start()

    def new_dataplane(self) -> FakeDataplane:
        if self.dataplane is not None:
            self.dataplane.close()
        ours, theirs = Channel.pair()
        self.dataplane = FakeDataplane(theirs)
        self.client.link.use(ours.detach())
        return self.dataplane

    async def __aenter__(self) -> InProcessClient:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.stop()
        self.store.close()
        os.close(self.secrets_fd)
        if self.dataplane is not None:
            self.dataplane.close()
        for made in self.context.granted.values():
            made.close()

    def states(self) -> list[RoleState]:
        return [message for message in self.context.sent if isinstance(message, RoleState)]

    def released(self) -> list[int]:
        return [message.number for message in self.context.sent if isinstance(message, SocketRelease)]

    async def session(self) -> bytes:
        """The id of the session that the data plane was given."""
        dataplane = self.dataplane
        assert dataplane is not None
        await until(lambda: bool(dataplane.registry.sessions))
        return next(iter(dataplane.registry.sessions))


async def beside_a_silent_one(
    client: InProcessClient, told: type[SessionBegun] | type[SessionConfirmed]
) -> tuple[FakeDataplane, bytes, bytes]:
    """The data plane, a session of which that was ``told`` and that then fell silent, and the one made beside it."""
    dataplane = client.new_dataplane()
    old = await client.session()
    dataplane.tell(told(session_id=old))
    await until(lambda: client.client.status().up)
    dataplane.tell(SessionSilent(session_id=old, silent=True))
    await until(lambda: len(dataplane.registry.sessions) == 2)
    (new,) = set(dataplane.registry.sessions) - {old}
    return dataplane, old, new


def connect(
    work: Callable[[InProcessClient, InProcessServer], Awaitable[None]], authority: Path | None = None
) -> None:
    """Run ``work`` beside both ends; prove that no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))

    async def run() -> None:
        async with InProcessServer(("127.0.0.1", free_port()), authority, when_dest_is_down=IMITATE) as server:
            key = server.key.public_key().public_bytes_raw()
            async with InProcessClient(server.port, key) as client:
                await work(client, server)
                assert not client.context.failures

    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_connects_says_so_and_begins_again_when_the_session_is_lost() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        session_id = await client.session()
        assert not client.client.status().up, "not before it has begun"
        dataplane.tell(SessionBegun(session_id=session_id))
        await until(lambda: client.client.status().up)
        assert client.client.status().text.endswith(", its first packet is awaited")
        dataplane.tell(SessionConfirmed(session_id=session_id))
        await until(lambda: "awaited" not in client.client.status().text)
        assert client.states()[-1].up
        assert client.released() == []
        dataplane.registry.sessions.clear()
        dataplane.tell(SessionLost(session_id=session_id, reason=LossReason.RESET))
        await until(lambda: client.released() == [1])
        assert "stateless reset" in client.states()[-1].text
        assert not client.states()[-1].up
        assert await client.session() != session_id
        assert client.client.status().handshakes == 1

    connect(work)


def test_a_new_session_is_made_beside_one_whose_peer_is_silent() -> None:
    """The old one carries what it can until the new one is confirmed."""

    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane, old, new = await beside_a_silent_one(client, SessionConfirmed)
        assert client.client.status().up
        dataplane.tell(SessionBegun(session_id=new))
        await asyncio.sleep(0.3)
        assert old in dataplane.registry.sessions, "nothing was heard of the new one yet"
        dataplane.tell(SessionConfirmed(session_id=new))
        await until(lambda: client.released() == [1])
        assert client.client.status().up
        dataplane.tell(SessionSilent(session_id=new, silent=True))
        dataplane.tell(SessionSilent(session_id=new, silent=False))
        await asyncio.sleep(0.3)  # another would have begun
        assert client.client.status().handshakes == 2

    connect(work)


@pytest.mark.parametrize(
    "change",
    [
        {"address": (ip_interface("10.77.0.50/24"),)},
        {"allowed_ips": (ip_network("10.77.0.0/24"), ip_network("192.168.7.0/24"))},
    ],
    ids=["Address", "AllowedIPs"],
)
def test_a_reload_with_other_addresses_or_networks_makes_a_new_session_at_once(change: dict[str, Any]) -> None:
    """A session has them for life: with the old one nothing passes, and it says that it is connected."""

    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        old = await client.session()
        dataplane.tell(SessionConfirmed(session_id=old))
        await until(lambda: client.client.status().up)
        await client.client.reload(client.secrets)
        await asyncio.sleep(0.2)
        assert len(dataplane.registry.sessions) == 1, "a reload that changes nothing of it"
        client.context.config = msgspec.structs.replace(client.context.config, **change)
        await client.client.reload(client.secrets)
        await until(lambda: len(dataplane.registry.sessions) == 2)
        (new,) = set(dataplane.registry.sessions) - {old}
        live = client.client._sessions.find(new)
        assert live is not None
        assert [each.ip for each in live.record.handed_over.addresses] == [
            each.ip for each in client.context.config.address
        ]
        assert dataplane.registry.sessions[new].install.allowed_ips == client.context.config.allowed_ips
        dataplane.tell(SessionConfirmed(session_id=new))
        await until(lambda: client.client._sessions.ends(old))
        assert client.client.status().text.startswith("connected")

    connect(work)


def test_what_the_server_does_not_grant_after_a_reload_is_told_and_tried_again() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        old = await client.session()
        dataplane.tell(SessionConfirmed(session_id=old))
        await until(lambda: client.client.status().up)
        good = client.context.config
        client.context.config = msgspec.structs.replace(good, address=(ip_interface("10.99.0.2/24"),))
        await client.client.reload(client.secrets)
        await until(lambda: "the session has the former Address" in client.client.status().text)
        assert "is no client's address in the server's networks" in client.client.status().text
        granted = len(client.context.granted)
        await until(lambda: len(client.context.granted) > granted)
        client.context.config = good
        await client.client.reload(client.secrets)
        await until(lambda: client.client.status().text.startswith("connected"))
        assert set(dataplane.registry.sessions) == {old}, "it is what the profile says again"

    connect(work)


def test_a_session_of_an_earlier_process_that_has_other_addresses_is_renewed() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        old = await client.session()
        dataplane.tell(SessionConfirmed(session_id=old))
        await until(lambda: client.client.status().up)
        await client.client.stop()
        client.store.close()
        client.context.numbered = {("client_udp", 1): os.dup(client.context.granted[1].fileno())}
        client.context.config = msgspec.structs.replace(
            client.context.config, address=(ip_interface("10.77.0.50/24"),)
        )
        await client.start()
        dataplane = client.new_dataplane()
        await until(lambda: len(dataplane.registry.sessions) == 2)
        assert old in dataplane.registry.sessions

    connect(work)


def test_a_session_outlives_the_worker_and_the_data_plane() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        session_id = await client.session()
        dataplane.tell(SessionConfirmed(session_id=session_id))
        await until(lambda: client.client.status().up)
        await client.client.stop()
        client.store.close()
        client.context.numbered = {("client_udp", 1): os.dup(client.context.granted[1].fileno())}
        await client.start()
        client.new_dataplane()
        assert await client.session() == session_id, "with its socket"
        await until(lambda: client.client.status().up)
        assert len(client.context.granted) == 1

    connect(work)


def test_a_session_whose_socket_is_gone_is_given_up_and_made_anew() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        session_id = await client.session()
        dataplane.tell(SessionConfirmed(session_id=session_id))
        await until(lambda: client.client.status().up)
        await client.client.stop()
        client.store.close()
        await client.start()
        client.new_dataplane()
        assert await client.session() != session_id
        assert any("socket is gone" in line for line in client.context.lines)

    connect(work)


def test_a_data_plane_that_is_late_is_waited_for() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        await until(lambda: server.server.status().handshakes == 1)
        await asyncio.sleep(0.3)  # the data plane is late
        assert not client.client.status().up
        dataplane = client.new_dataplane()
        dataplane.tell(SessionConfirmed(session_id=await client.session()))
        await until(lambda: client.client.status().up)
        assert server.server.status().handshakes == 1, "the one that waited"

    connect(work)


def test_a_session_of_which_nothing_ever_came_back_takes_the_place_of_none() -> None:
    """The one that works goes on, though its peer was silent for a while, and another attempt follows."""

    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane, old, new = await beside_a_silent_one(client, SessionConfirmed)
        dataplane.tell(SessionSilent(session_id=old, silent=False))
        dataplane.tell(SessionBegun(session_id=new))
        del dataplane.registry.sessions[new]
        dataplane.tell(SessionLost(session_id=new, reason=LossReason.UNANSWERED))
        await until(lambda: client.released() == [2])
        assert old in dataplane.registry.sessions
        assert client.client.status().up

    connect(work)


def test_a_session_that_falls_silent_before_anything_was_heard_gets_another_beside_it() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane, _, new = await beside_a_silent_one(client, SessionBegun)
        dataplane.tell(SessionBegun(session_id=new))
        dataplane.tell(SessionConfirmed(session_id=new))
        await until(lambda: client.released() == [1])
        assert "awaited" not in client.client.status().text and client.client.status().up

    connect(work)


def test_a_session_beside_another_that_falls_silent_unheard_ends_at_once() -> None:
    """Its packets would be lost, and those of the other one pass again."""

    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane, old, new = await beside_a_silent_one(client, SessionConfirmed)
        dataplane.tell(SessionBegun(session_id=new))
        dataplane.tell(SessionSilent(session_id=old, silent=False))
        dataplane.tell(SessionSilent(session_id=new, silent=True))
        await until(lambda: client.released() == [2])
        assert old in dataplane.registry.sessions
        assert client.client.status().up

    connect(work)


def test_a_session_that_had_begun_and_was_never_answered_is_a_failed_attempt() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        session_id = await client.session()
        dataplane.tell(SessionBegun(session_id=session_id))
        await until(lambda: client.client.status().up)
        dataplane.registry.sessions.clear()
        dataplane.tell(SessionLost(session_id=session_id, reason=LossReason.UNANSWERED))
        await until(lambda: any("session lost" in line for line in client.context.lines))
        assert await client.session() != session_id
        assert not client.states()[-1].up

    connect(work)


def test_an_unconfirmed_session_is_a_failed_attempt() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        dataplane = client.new_dataplane()
        session_id = await client.session()
        dataplane.registry.sessions.clear()
        dataplane.tell(SessionLost(session_id=session_id, reason=LossReason.UNCONFIRMED))
        await until(lambda: any("did not start" in line for line in client.context.lines))
        assert await client.session() != session_id
        assert not any(state.up for state in client.states())

    connect(work)


@pytest.mark.parametrize(
    ("cause", "clock"), [(Cause.CLOCK_OFF, True), (Cause.CLOCK_BEHIND, True), (Cause.TWIN, False)]
)
def test_who_may_have_failed_for_its_clock_waits_for_that_to_be_set(
    cause: Cause, clock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[bool] = []

    async def attempt(self: Client) -> bytes:
        raise PeerError.of("no session", cause)

    async def wait(self: EarlyAttempt, pause: float, *, any_network: bool, clock: bool) -> bool:
        waits.append(clock)
        await asyncio.sleep(0.01)  # the next attempt
        return True

    monkeypatch.setattr(Client, "_attempt", attempt)
    monkeypatch.setattr(EarlyAttempt, "wait", wait)

    async def work(client: InProcessClient, server: InProcessServer) -> None:
        await until(lambda: len(waits) > 1)
        assert set(waits) == {clock}

    connect(work)


def test_whatever_fails_is_told_in_words_and_tried_again() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        client.context.refusing = True
        await until(lambda: any("too many are in use" in line for line in client.context.lines))
        client.context.refusing = False
        client.new_dataplane().tell(SessionConfirmed(session_id=await client.session()))
        await until(lambda: client.client.status().up)
        assert all("next attempt in" in line for line in client.context.lines)

    connect(work)


def test_a_server_that_refuses_the_address_is_no_session() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        server.server._acceptance.grants.own = ()
        dataplane = client.new_dataplane()
        await until(lambda: any("no session with" in line for line in client.context.lines))
        assert dataplane.registry.sessions == {}
        assert not client.client.status().up

    connect(work)


def test_it_ends_in_the_middle_of_a_handshake() -> None:
    async def work(client: InProcessClient, server: InProcessServer) -> None:
        await until(lambda: bool(client.context.granted))
        assert not client.client.status().up, "the handshake is under way"

    connect(work)
