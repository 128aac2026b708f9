"""The life of a worker without its sandbox: what comes in is answered once, refused, or ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from qre.causes import Cause
from qre.ends import Role
from qre.errors import MachineError, QreError, UserError
from qre.ipc import worker as runtime
from qre.ipc.channel import Channel
from qre.ipc.messages import (
    Descriptor,
    Done,
    Envelope,
    HandshakeStatus,
    Heartbeat,
    Hello,
    Party,
    Refused,
    Reload,
    RoleState,
    SocketGranted,
    SocketRequest,
    Start,
    StatusRequest,
    Stop,
    WorkerConfig,
)
from qre.ipc.roles import ROLES, WorkerRole
from qre.structs import Message, decoder, encoder
from qre.supervisor.parent.process_settings import empty_memfd
from tests.support.daemons import PATIENCE

CONFIG = WorkerConfig(
    profile="p", device="d", role=Role.SERVER, address=(), mtu=1380, keepalive_s=0, allowed_ips=(), server_name="",
    listen_ip="127.0.0.1", listen_port=9,
)  # fmt: skip
#: The handshake worker's row; what it takes may be missing.
ROLE = replace(
    ROLES[Party.HANDSHAKE],
    descriptors=tuple(replace(entry, optional=True) for entry in ROLES[Party.HANDSHAKE].descriptors),
)


class Scripted:
    """A worker that remembers what it is told."""

    def __init__(self) -> None:
        self.came: list[Any] = []

    async def start(self, context: runtime.WorkerContext) -> None:
        self.context = context
        self.came.append("start")

    async def reload(self) -> None:
        self.came.append(("reload", self.context.config.mtu))

    async def handle(self, source: Party, message: Message) -> Message:
        if isinstance(message, RoleState):
            if message.up:
                raise ValueError(message.text)
            return HandshakeStatus(up=True, text="", handshakes=1 << 70)
        raise UserError(f"{type(message).__name__} from {source}", "no")

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        self.came.append((name, number))
        os.close(fd)

    async def status(self) -> Message:
        return RoleState(up=True, text="fine")

    async def stop(self) -> None:
        self.came.append("stop")


class Supervision:
    """The supervisor's ends of one worker, and the worker's task."""

    def __init__(self, directory: Path, role: WorkerRole = ROLE) -> None:
        self.context = zmq.asyncio.Context()
        self.router = self.context.socket(zmq.ROUTER)
        endpoint = f"ipc://{directory / 's'}"
        self.router.bind(endpoint)
        self.channel_socket, theirs = Channel.pair()
        self.channel: Channel[Descriptor] = Channel(self.channel_socket, Descriptor)
        self.worker = Scripted()
        self.connected = threading.Event()
        made = runtime._Runtime(role, self.worker, theirs, endpoint, self.connected.set)
        self.task = asyncio.create_task(made.run())
        self.made = made

    async def hear(self) -> Envelope:
        self.identity, data = await asyncio.wait_for(self.router.recv_multipart(), PATIENCE)
        return decoder(Envelope).decode(data)

    async def ask(self, body: Any, number: int = 5, **rest: Any) -> Message:
        envelope = Envelope(peer=rest.pop("peer", Party.SUPERVISOR), id=number, body=body, **rest)
        await self.router.send_multipart([self.identity, encoder().encode(envelope)])
        answer = await self.hear()
        assert (answer.id, answer.answer) == (number, True)
        return answer.body

    async def close(self) -> None:
        if not self.task.done():
            self.made._context.fail("the test is over")
        await asyncio.wait_for(self.task, PATIENCE)
        self.channel.close()
        self.router.close()
        self.context.term()


def drive(
    directory: Path,
    story: Callable[[Supervision], Awaitable[None]],
    *,
    begin: bool = True,
    role: WorkerRole = ROLE,
) -> None:
    async def run() -> None:
        made = Supervision(directory, role)
        try:
            assert (await made.hear()).body == Hello(role=Party.HANDSHAKE, pid=os.getpid())
            if begin:
                assert not made.connected.is_set()
                assert await made.ask(Start(config=CONFIG)) == Done()
                assert made.connected.is_set()
            await story(made)
        finally:
            await made.close()

    asyncio.run(run())


def test_every_request_has_one_answer_in_any_stage(tmp_path: Path) -> None:
    async def story(made: Supervision) -> None:
        for early in (Reload(config=CONFIG), StatusRequest(), RoleState(up=True, text="")):
            refused = await made.ask(early)
            assert isinstance(refused, Refused)
            assert "out of turn" in refused.reason
        assert await made.ask(Heartbeat()) == Done()
        assert await made.ask(Start(config=CONFIG)) == Done()
        again = await made.ask(Start(config=CONFIG))
        assert isinstance(again, Refused), "started once"
        assert await made.ask(Reload(config=msgspec.structs.replace(CONFIG, mtu=1300))) == Done()
        assert await made.ask(StatusRequest()) == RoleState(up=True, text="fine")
        refused = await made.ask(SocketRequest(peer="192.0.2.1", port=443), peer=Party.NETLINK)
        assert refused == Refused(reason="SocketRequest from netlink: no")
        assert await made.ask(Stop()) == Done()
        assert await asyncio.wait_for(made.task, PATIENCE) == 0
        assert made.worker.came == ["start", ("reload", 1300), "stop"]

    drive(tmp_path, story, begin=False)


def test_a_defect_is_told_by_place_and_never_with_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(made: Supervision) -> None:
        answer = await made.ask(RoleState(up=True, text="the key 0123"))
        assert answer == Refused(reason="internal error (ValueError)")

    drive(tmp_path, story)
    assert "Scripted.handle" in caplog.text
    assert "0123" not in caplog.text


def test_an_answer_that_cannot_be_written_down_is_a_refusal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(made: Supervision) -> None:
        assert await made.ask(RoleState(up=False, text="")) == Refused(reason="internal error (OverflowError)")
        assert await made.ask(Heartbeat()) == Done()

    drive(tmp_path, story)
    assert "Supervision" not in caplog.text and "OverflowError" in caplog.text


def test_bytes_that_are_no_message_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(made: Supervision) -> None:
        for garbage in (b"", b"\xff" * 100, b"\x91" * 5000):
            await made.router.send_multipart([made.identity, garbage])
        assert await made.ask(Heartbeat()) == Done()

    drive(tmp_path, story)
    assert caplog.text.count("does not parse") == 1, "one line"


def test_own_requests_are_answered_refused_or_time_out(tmp_path: Path) -> None:
    async def story(made: Supervision) -> None:
        async def answered(with_: Message | None) -> Message:
            asked = asyncio.ensure_future(
                made.worker.context.request(
                    Party.SUPERVISOR, SocketRequest(peer="192.0.2.1", port=443), timeout=5 if with_ else 0.05
                )
            )
            number = (await made.hear()).id
            if with_ is not None:
                for _ in range(2):  # the second one is nobody's
                    envelope = Envelope(peer=Party.SUPERVISOR, id=number, answer=True, body=with_)
                    await made.router.send_multipart([made.identity, encoder().encode(envelope)])
            return await asked

        assert await answered(SocketGranted(number=3)) == SocketGranted(number=3)
        with pytest.raises(MachineError, match="not today"):
            await answered(Refused(reason="not today"))
        with pytest.raises(MachineError, match="no way there") as caught:
            await answered(Refused(reason="no way there", cause=Cause.NO_ROUTE))
        assert caught.value.cause is Cause.NO_ROUTE
        with pytest.raises(MachineError, match=r"no answer in 0\.05 s"):
            await answered(None)

    drive(tmp_path, story)


def test_descriptors_come_before_what_is_said_of_them_and_the_unasked_are_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(made: Supervision) -> None:
        keys, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memfd = empty_memfd("session_secrets")
        try:
            made.channel.send(Descriptor(name="session_secrets"), [memfd])
            made.channel.send(Descriptor(name="session_secrets"), [memfd])  # the first is closed again
            made.channel.send(Descriptor(name="keys"), [keys.fileno()])
            made.channel.send(Descriptor(name="keys"), [memfd])
            made.channel.send(Descriptor(name="tun"), [memfd])
            made.channel.send(Descriptor(name="replay"), [memfd, memfd])
            assert await made.ask(Start(config=CONFIG)) == Done()
            held = made.worker.context.descriptors
            assert set(held) == {"session_secrets", "keys"}
            made.channel.send(Descriptor(name="keys", number=4), [keys.fileno()])
            assert await made.ask(Heartbeat()) == Done()
            assert made.worker.came[-1] == ("keys", 4)
            for fd in held.values():
                os.close(fd)
        finally:
            for each in (keys, other):
                each.close()
            os.close(memfd)

    drive(tmp_path, story, begin=False)
    assert "refused" in caplog.text


def test_a_start_without_what_its_row_promises_is_refused_by_name(tmp_path: Path) -> None:
    async def story(made: Supervision) -> None:
        memfd = empty_memfd("session_secrets")
        try:
            made.channel.send(Descriptor(name="session_secrets"), [memfd])
        finally:
            os.close(memfd)
        refused = await made.ask(Start(config=CONFIG))
        assert isinstance(refused, Refused)
        assert refused.reason.endswith("missing: profile_secrets, replay, leases, udp_userspace"), refused.reason
        assert made.worker.came == [], "it was not asked to start"
        os.close(made.made._context.descriptors["session_secrets"])

    drive(tmp_path, story, begin=False, role=ROLES[Party.HANDSHAKE])


def test_a_server_socket_that_is_not_at_listen_refuses_the_start(tmp_path: Path) -> None:
    async def story(made: Supervision) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            udp.bind(("127.0.0.1", 0))
            made.channel.send(Descriptor(name="udp_userspace"), [udp.fileno()])
            refused = await made.ask(Start(config=CONFIG))
        assert isinstance(refused, Refused)
        assert "not to Listen" in refused.reason
        os.close(made.made._context.descriptors["udp_userspace"])

    drive(tmp_path, story, begin=False)


@pytest.mark.parametrize("how", ["closed", "garbage"])
def test_a_supervisor_that_is_gone_or_mad_ends_the_worker(tmp_path: Path, how: str) -> None:
    async def story(made: Supervision) -> None:
        if how == "closed":
            made.channel.close()
        else:
            made.channel_socket.send(b"\xff garbage")
        assert await asyncio.wait_for(made.task, PATIENCE) == 1

    drive(tmp_path, story)


def test_lines_that_outsiders_can_cause_are_limited_by_key(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = runtime.LimitedLog(logging.getLogger("test"))
    for number in range(1000):
        limited("same", "again")
        limited(f"key {number % 200}", "many keys")
    assert len(caplog.records) == runtime.MAX_LOG_KEYS + 1
    assert len(limited._keys) == runtime.MAX_LOG_KEYS + 1
    monkeypatch.setattr(runtime, "LOG_INTERVAL", 0.0)
    limited("same", "once more")
    assert caplog.messages[-1] == "once more (999 more of these)"


def test_a_role_that_cannot_begin_ends_with_a_line_and_no_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: BaseException) -> Callable[..., None]:
        def create(*_: object) -> None:
            raise error

        return create

    ours, theirs = Channel.pair()
    for error, words in (
        (QreError("the sandbox", "cannot drop"), "the sandbox: cannot drop"),
        (ImportError("secret 0123", name="aioquic"), "aioquic cannot be loaded"),
        (KeyError("secret 0123"), "KeyError"),
    ):
        monkeypatch.setattr(runtime, "importlib", SimpleNamespace(import_module=fail(error)))
        with pytest.raises(SystemExit) as ended:
            runtime.run_worker(Party.NETLINK, theirs, "ipc:///nowhere")
        assert ended.value.code == 1
        assert words in caplog.text
        assert "0123" not in caplog.text
    ours.close()
    theirs.close()
