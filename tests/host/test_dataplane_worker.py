"""The data plane worker as supervisor and handshake worker see it: descriptors, requests, events, restarts."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from qre.dataplane.protocol import (
    Answer,
    CidAdoptFor,
    CidReleaseFor,
    DataplaneReport,
    FrameFate,
    FrameReceived,
    FrameSend,
    LossReason,
    SessionConfirmed,
    SessionDelete,
    SessionList,
    SessionLost,
    underlay_of,
)
from qre.dataplane.status import SessionStatus
from qre.ends import Role
from qre.errors import QreError
from qre.ipc.channel import Channel
from qre.ipc.messages import DataplaneStatus, Heartbeat, Party, WorkerConfig
from qre.ipc.worker import LimitedLog, WorkerContext
from qre.workers.dataplane.main import DataplaneWorker, create
from qre.workers.dataplane.session.path import Address
from qre.workers.dataplane.underlay import UnderlaySocket
from tests.support.daemons import PATIENCE, until
from tests.support.dataplane import install_of, marks_memfd
from tests.support.dataplane_endpoint import open_tun
from tests.support.namespaces import Namespace
from tests.support.ping import answered

DEVICE = "qt0"
INNER = {Role.CLIENT: "10.91.6.2", Role.SERVER: "10.91.6.1"}
SPARE = bytes(range(0x50, 0x64))


def tun_in(namespace: Namespace) -> int:
    """A TUN device of another namespace: only a thread goes there to open it."""
    opened: list[int] = []

    def work() -> None:
        target = os.open(f"/run/netns/{namespace.name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(target, 0):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(target)
        opened.append(open_tun(DEVICE))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return opened[0]


class Context:
    """What the worker's runtime gives it."""

    def __init__(self, role: Role, descriptors: dict[str, int]) -> None:
        self.role = Party.DATAPLANE
        self.config = WorkerConfig(
            profile="p",
            device=DEVICE,
            role=role,
            address=(),
            mtu=1380,
            keepalive_s=0,
            allowed_ips=(),
            server_name="site.example",
        )
        self.descriptors = descriptors
        self.log = logging.getLogger("test")
        self.limited = LimitedLog(self.log)
        self.failures: list[str] = []

    def fail(self, reason: str) -> None:
        self.failures.append(reason)


class End:
    """One worker with its TUN device, and the test as its handshake worker."""

    def __init__(self, role: Role, namespace: Namespace, sockets: dict[Role, socket.socket]) -> None:
        self.role = role
        self.namespace = namespace
        self.socket = sockets[role]
        self.peer = sockets[Role.SERVER if role is Role.CLIENT else Role.CLIENT]
        self.marks = marks_memfd()
        self.worker: DataplaneWorker = create()
        self.said: list[DataplaneReport] = []
        self.ids = 100

    def keys(self) -> int:
        ours, theirs = Channel.pair()
        self.channel: Channel[DataplaneReport] = Channel(ours, DataplaneReport)
        return theirs.detach()

    async def start(self) -> None:
        descriptors = {"tun": tun_in(self.namespace), "number_marks": os.dup(self.marks), "keys": self.keys()}
        if self.role is Role.SERVER:
            descriptors["udp_kernel_slot"] = os.dup(self.socket.fileno())
        self.context = Context(self.role, descriptors)
        await self.worker.start(cast(WorkerContext, self.context))
        self.namespace.ip("addr", "add", f"{INNER[self.role]}/24", "dev", DEVICE)
        self.namespace.ip("link", "set", DEVICE, "mtu", "1380", "up")

    def installation(self, **changes: Any) -> Any:
        own, peer = self.socket.getsockname(), self.peer.getsockname()
        self.ids += 1
        underlay = underlay_of((own[0], own[1]), (peer[0], peer[1]))
        return install_of(self.role, id=self.ids, underlay=underlay, **changes)

    async def ask(self, request: Any, fds: tuple[int, ...] = ()) -> Answer:
        self.channel.send(request, fds)
        return cast(Answer, await self.hear(Answer, lambda answer: cast(Answer, answer).id == request.id))

    async def install(self, **changes: Any) -> Answer:
        fds = (self.socket.fileno(),) if self.role is Role.CLIENT else ()
        return await self.ask(self.installation(**changes), fds)

    async def hear(self, kind: type[Any], which: Any = lambda report: True) -> DataplaneReport:
        """Wait for a report; it is taken out of what was said."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            while (received := self.channel.receive()) is not None:
                self.said.append(received[0])
            for report in self.said:
                if isinstance(report, kind) and which(report):
                    self.said.remove(report)
                    return report
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {kind.__name__}")

    async def stop(self) -> None:
        await self.worker.stop()
        self.channel.close()
        os.close(self.marks)


class Lab:
    def __init__(self) -> None:
        self.namespaces = {role: Namespace(f"t-dpw-{role}") for role in Role}
        self.sockets = {}
        for role in Role:
            self.sockets[role] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sockets[role].bind(("127.0.0.1", 0))

    def run(self, scenario: Any) -> None:
        """Run ``scenario(client, server)`` with both workers started, on one loop."""

        async def whole() -> None:
            ends = {role: End(role, self.namespaces[role], self.sockets) for role in Role}
            for end in ends.values():
                await end.start()
            try:
                await asyncio.wait_for(scenario(ends[Role.CLIENT], ends[Role.SERVER]), 2 * PATIENCE)
            finally:
                for end in ends.values():
                    await end.stop()

        asyncio.run(whole())

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        for namespace in self.namespaces.values():
            namespace.delete()


def descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    before = descriptors_open()
    made = Lab()
    try:
        yield made
    finally:
        made.close()
    assert descriptors_open() == before


async def up(client: End, server: End) -> None:
    assert (await server.install()).error == ""
    assert (await client.install()).error == ""
    await client.hear(SessionConfirmed)
    await server.hear(SessionConfirmed)


async def ping(end: End, address: str, count: int = 5, wait: float = PATIENCE) -> int:
    """Answers, while the loop goes on."""
    return await asyncio.to_thread(answered, end.namespace, address, count=count, wait=wait)


def test_two_workers_carry_a_ping_and_tell_what_they_did(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        assert await ping(client, INNER[Role.SERVER]) == 5
        status = cast(DataplaneStatus, await server.worker.status())
        (session,) = status.sessions
        assert session.state == "established"
        assert session.endpoint == "{}:{}".format(*lab.sockets[Role.CLIENT].getsockname())
        assert session.rx_packets == session.tx_packets == status.counters.rx_packets == 5
        assert session.rx_bytes == 5 * 84
        answer = await client.ask(SessionList(id=7))
        assert [mark.confirmed for mark in answer.sessions] == [True]

    lab.run(scenario)


def test_a_connection_id_that_is_asked_back_is_replaced_by_the_data_planes_alone(lab: Lab) -> None:
    """What is left to the handshake workers is to issue it, and to hear of the one that came back."""

    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        session_id = server.installation().session_id
        adopt = CidAdoptFor(id=1, session_id=session_id, connection_id=SPARE, sequence=1)
        assert (await server.ask(adopt)).error == ""
        frame = b"\x18\x01\x01\x14" + SPARE + bytes(16)
        assert (await server.ask(FrameSend(id=2, session_id=session_id, frames=frame))).error == ""
        assert cast(FrameFate, await server.hear(FrameFate)).acknowledged
        received = cast(FrameReceived, await server.hear(FrameReceived))
        assert received.frames == b"\x19\x00"
        (before,) = [cid for cid in (await status(server)).cids if cid != SPARE]
        release = CidReleaseFor(id=3, session_id=session_id, connection_id=before)
        assert (await server.ask(release)).error == ""
        assert (await status(server)).cids == (SPARE,)
        assert await ping(client, INNER[Role.SERVER]) == 5
        assert "no such" in (await server.ask(CidReleaseFor(id=4, session_id=bytes(32), connection_id=SPARE))).error
        assert not [report for report in client.said if isinstance(report, FrameReceived)]

    lab.run(scenario)


async def status(end: End) -> SessionStatus:
    (session,) = cast(DataplaneStatus, await end.worker.status()).sessions
    return session


def test_what_a_client_sends_before_its_first_session_waits_for_it(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        assert (await server.install()).error == ""
        before = asyncio.create_task(ping(client, INNER[Role.SERVER]))
        await asyncio.sleep(1)  # they are under way
        assert (await client.install()).error == ""
        assert await before == 5
        drops = cast(DataplaneStatus, await client.worker.status()).counters.drops
        assert drops.get("no-session", 0) <= 4, "what was said to all of the link"

    lab.run(scenario)


def test_frames_and_spare_connection_ids_pass_through(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        session_id = server.installation().session_id
        adopt = CidAdoptFor(id=1, session_id=session_id, connection_id=SPARE, sequence=1)
        assert (await server.ask(adopt)).error == ""
        frame = b"\x18\x01\x00\x14" + SPARE + bytes(16)
        assert (await server.ask(FrameSend(id=2, session_id=session_id, frames=frame))).error == ""
        assert cast(FrameFate, await server.hear(FrameFate)).acknowledged
        assert SPARE in (await status(server)).cids
        stream = b"\x0a\x00\x03abc"
        assert (await server.ask(FrameSend(id=3, session_id=session_id, frames=stream))).error == ""
        received = cast(FrameReceived, await client.hear(FrameReceived))
        assert received.frames == stream
        release = CidReleaseFor(id=4, session_id=session_id, connection_id=SPARE)
        assert (await server.ask(release)).error == ""

    lab.run(scenario)


def test_deleting_a_session_tells_the_peer(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        assert (await client.ask(SessionDelete(id=9, session_id=client.installation().session_id))).error == ""
        assert cast(SessionLost, await server.hear(SessionLost)).reason is LossReason.CLOSED
        assert await ping(server, INNER[Role.CLIENT], 1, wait=1) == 0
        drops = cast(DataplaneStatus, await server.worker.status()).counters.drops
        assert drops["no-session"] >= 1

    lab.run(scenario)


def test_a_new_handshake_worker_takes_over_and_hears_no_answers_of_the_old_one(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        server.channel.close()
        await asyncio.sleep(0.05)  # the worker sees that nobody is there
        assert await ping(client, INNER[Role.SERVER]) == 5  # traffic needs no handshake worker
        assert (await client.ask(SessionDelete(id=9, session_id=client.installation().session_id))).error == ""
        await asyncio.sleep(0.05)  # what it has to say has nowhere to go
        await server.worker.descriptor("keys", 0, server.keys())
        assert cast(SessionLost, await server.hear(SessionLost)).reason is LossReason.CLOSED  # it waited
        answer = await server.ask(SessionList(id=1))
        assert answer.sessions == ()
        assert not server.context.failures

    lab.run(scenario)


def test_what_is_no_request_makes_the_worker_give_up(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        server.channel.send({"type": "nonsense"})
        await until(lambda: bool(server.context.failures))
        assert "malformed request" in server.context.failures[0]

    lab.run(scenario)


def test_installations_without_their_socket_or_with_a_wrong_one_are_refused(lab: Lab) -> None:
    async def scenario(client: End, server: End) -> None:
        assert "socket" in (await client.ask(client.installation())).error
        pair = socket.socketpair()
        assert "UDP" in (await client.ask(client.installation(), (pair[0].fileno(),))).error
        for one in pair:
            one.close()
        assert "server" in (await client.ask(install_of(Role.SERVER, id=5))).error
        assert (await client.install()).error == ""

    lab.run(scenario)


def test_before_its_start_it_serves_nothing_and_can_be_stopped() -> None:
    async def scenario() -> None:
        worker = create()
        with pytest.raises(QreError):
            await worker.status()
        with pytest.raises(QreError):
            await worker.handle(Party.SUPERVISOR, Heartbeat())
        await worker.reload()
        await worker.stop()

    asyncio.run(scenario())


def test_packets_that_find_the_socket_full_wait_and_lose_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    full = 0
    send = UnderlaySocket.send

    def sometimes_full(
        self: UnderlaySocket, packets: Sequence[bytes], to: Address, ecn: int = 0, source: str | None = None
    ) -> list[bytes]:
        nonlocal full
        full += 1
        if full % 3:
            return send(self, packets[:1], to, ecn, source) + list(packets[1:])
        return list(packets)

    async def scenario(client: End, server: End) -> None:
        await up(client, server)
        monkeypatch.setattr(UnderlaySocket, "send", sometimes_full)
        assert await ping(client, INNER[Role.SERVER], 40) == 40
        monkeypatch.undo()
        assert await ping(client, INNER[Role.SERVER]) == 5
        drops = cast(DataplaneStatus, await client.worker.status()).counters.drops
        assert "send-queue-full" not in drops
        assert full > 80

    lab.run(scenario)
