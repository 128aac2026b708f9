"""A daemon that has joined a port is reloaded: the front, which recognises its clients, is asked first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from qre.ends import Role
from qre.errors import MachineError, QreError, UserError
from qre.ipc.channel import Channel
from qre.ipc.messages import Done, GuestJoin, Party, Reload, WorkerConfig
from qre.structs import Message
from qre.supervisor.front import FrontGoneError, join_front, join_of, tell_front
from qre.supervisor.front_listener import FrontListener, Host
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Members, Supervised
from qre.supervisor.parent_messages import Setup
from qre.supervisor.port_guests import PortGuests
from qre.supervisor.reloads import Reloads

CONFIG = WorkerConfig(
    profile="server1",
    device="qre1",
    role=Role.SERVER,
    address=(ip_interface("10.78.0.1/24"),),
    mtu=1400,
    keepalive_s=0,
    allowed_ips=(),
    server_name="site.example",
    user_dataplane=False,
    joined=True,
)
FORMER, NEW = b"of the start", b"of the reload"


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


class FakeWorker:
    """A worker as the supervisor has it; ``refuse`` is what it says to the next request."""

    def __init__(self) -> None:
        self.life = SimpleNamespace(stage=WorkerStage.READY)
        self.router = self
        self.party = Party.HANDSHAKE
        self.pid = 1
        self.asked: list[Message] = []
        self.handed: list[tuple[str, bytes]] = []
        self.refuse = ""

    def hand(self, name: str, fd: int, number: int = 0) -> None:
        self.handed.append((name, os.pread(fd, 100, 0) if "secrets" in name else b""))

    async def request(self, source: Party, message: Message, timeout: float) -> Message:
        self.asked.append(message)
        if self.refuse:
            raise MachineError("worker handshake", self.refuse)
        return Done()


class Port:
    """The front's supervisor, and a daemon that has joined."""

    def __init__(self, directory: Path) -> None:
        self.worker = FakeWorker()
        self.guests = PortGuests(cast(Supervised, self.worker), lambda count: None)
        own = msgspec.structs.replace(CONFIG, profile="server0", device="qre0", joined=False)
        spare = os.open(os.devnull, os.O_RDONLY)
        guests = self.guests
        host = Host(
            lambda: join_of(own), (spare, spare), lambda: [spare] * 3, guests.admit, guests.reload, guests.leave
        )
        self.directory = directory
        self.listener = FrontListener(directory, "port", host)

    async def join(self) -> int:
        """The connection."""
        self.listener.open()
        secrets = memfd(FORMER)
        channel, _, held = await asyncio.to_thread(join_front, self.directory, "port", join_of(CONFIG), secrets)
        for fd in (secrets, *held.values()):
            os.close(fd)
        self.channel = channel
        return channel.fileno()

    async def tell(self, connection: int, config: WorkerConfig = CONFIG) -> None:
        secrets = memfd(NEW)
        try:
            await tell_front(connection, join_of(config), secrets)
        finally:
            os.close(secrets)


def run(work: Callable[[Port, int], Any], directory: Path) -> None:
    """On a port that is joined; the connection stays, and nobody has said anything on it but its end."""

    async def scenario() -> None:
        port = Port(directory)
        connection = await port.join()
        await work(port, connection)
        assert port.channel.receive() is None, "for the parent, whatever can be read here is the front's end"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_the_front_takes_other_clients_and_keeps_them_for_its_next_worker(tmp_path: Path) -> None:
    async def work(port: Port, connection: int) -> None:
        await port.tell(connection)
        assert port.worker.handed == [("guest_secrets", FORMER), ("guest_feed", b""), ("guest_secrets", NEW)]
        assert [type(message) for message in port.worker.asked] == [GuestJoin] * 2
        await port.guests.announce_all()
        assert port.worker.handed[3:] == [("guest_secrets", NEW), ("guest_feed", b"")]

    run(work, tmp_path)


def test_what_the_front_refuses_is_told_and_the_former_clients_stay(tmp_path: Path) -> None:
    async def work(port: Port, connection: int) -> None:
        port.worker.refuse = "RealityShortIds: 00 belongs to another device"
        with pytest.raises(UserError, match="belongs to another device"):
            await port.tell(connection)
        port.worker.refuse = ""
        with pytest.raises(UserError, match=r"ServerName is other\.example, and site\.example at the port's front"):
            await port.tell(connection, msgspec.structs.replace(CONFIG, server_name="other.example"))
        await port.guests.announce_all()
        assert port.worker.handed[-2:] == [("guest_secrets", FORMER), ("guest_feed", b"")]

    run(work, tmp_path)


def test_a_front_that_is_gone_is_told_and_nobody_waits_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = Port(tmp_path)
        connection = await port.join()
        port.listener.close()
        with pytest.raises(FrontGoneError):
            await port.tell(connection)

    asyncio.run(asyncio.wait_for(scenario(), 30))


# --- the order in which it is applied ---


class Applied:
    """A joined daemon's supervisor: ``front`` is where its front reads."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        ours, self.theirs = Channel.pair()
        self.supplies = {"profile_secrets": memfd(FORMER), "front": ours.detach()}
        self.used: list[WorkerConfig] = [CONFIG]
        members = cast(Members, FakeMembers({Party.NETLINK: FakeWorker(), Party.HANDSHAKE: self.worker}))
        setup = cast(Setup, None)  # which a reload does not read
        self.reloads = Reloads(members, setup, self.supplies, lambda: self.used[-1], self.used.append)

    async def apply(self) -> None:
        self.supplies["new_profile_secrets"] = memfd(NEW)
        await self.reloads.apply(msgspec.structs.replace(CONFIG, mtu=1300))


class FakeMembers(dict[Party, FakeWorker]):
    def complete_pids(self) -> list[int]:
        return [1, 2]

    async def until(self, fact: Callable[[], bool], timeout: float) -> bool:
        return fact()


def test_who_leads_the_port_is_asked_before_anything_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, bytes]] = []
    done = Applied()

    async def tell(connection: int, join: object, secrets: int) -> None:
        assert connection == done.supplies["front"]
        told.append((len(done.worker.asked), os.pread(secrets, 100, 0)))
        if len(told) == 1:
            raise UserError("RealityShortIds", "00 belongs to another device at this port already")

    monkeypatch.setattr("qre.supervisor.reloads.tell_front", tell)
    with pytest.raises(QreError, match="belongs to another"):
        asyncio.run(done.apply())
    assert told == [(0, NEW), (0, FORMER)], "the front is asked first, and has what it had"
    assert done.used[-1] == CONFIG
    assert done.worker.handed[-1] == ("profile_secrets", FORMER)
    asyncio.run(done.apply())
    assert told[2][1] == NEW
    assert done.used[-1].mtu == 1300
    assert done.worker.handed[-1] == ("profile_secrets", NEW)


def test_what_our_own_workers_refuse_is_taken_back_at_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []
    done = Applied()

    async def tell(connection: int, join: object, secrets: int) -> None:
        told.append(os.pread(secrets, 100, 0))

    monkeypatch.setattr("qre.supervisor.reloads.tell_front", tell)
    done.worker.refuse = "RealityPrivateKey changed"
    with pytest.raises(QreError, match="RealityPrivateKey changed"):
        asyncio.run(done.apply())
    assert told == [NEW, FORMER]
    assert Reload in {type(message) for message in done.worker.asked}
