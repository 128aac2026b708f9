"""One router a role over real ZeroMQ: what a worker may say, what it may not, and that every request is answered."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from qre.causes import Cause
from qre.errors import MachineError, QreError
from qre.ipc.messages import (
    CidAdopt,
    CidSync,
    Done,
    Envelope,
    Heartbeat,
    Hello,
    NetworkChanged,
    Party,
    Refused,
    RoleState,
    SocketGranted,
    SocketRequest,
    Stop,
)
from qre.ipc.worker import LimitedLog
from qre.structs import Message, decoder, encoder
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.router import MAX_ONE_WAY, MAX_OPEN_BYTES, Router, endpoint
from tests.support.daemons import PATIENCE, until

CID = bytes(20)


class Bench:
    """Routers of three workers, and a raw DEALER for each, as workers would have."""

    def __init__(self, runtime: Path) -> None:
        self.context = zmq.asyncio.Context()
        self.said: list[str] = []
        self.handled: list[tuple[Party, Message]] = []
        self.stage = WorkerStage.SPAWNED
        self.fails: QreError | None = None
        self.routers: dict[Party, Router] = {}
        self.dealers: dict[Party, zmq.asyncio.Socket] = {}
        log = LimitedLog(type("Log", (), {"log": lambda _, level, *words: self.said.append(str(words))})())
        for party in (Party.HANDSHAKE, Party.BPF_LOADER, Party.NETLINK):
            (runtime / party.value).mkdir(exist_ok=True)
            router = Router(self.context, runtime, party, log)
            router.stage = lambda: self.stage
            self.routers[party] = router
            self.dealers[party] = self.context.socket(zmq.DEALER)
            self.dealers[party].connect(endpoint(runtime, party))
        self.tasks = [
            asyncio.create_task(router.serve(self.handle, self.routers)) for router in self.routers.values()
        ]

    async def handle(self, source: Party, message: Message) -> Message | None:
        self.handled.append((source, message))
        if self.fails is not None:
            raise self.fails
        return SocketGranted(number=3) if isinstance(message, SocketRequest) else None

    async def send(self, party: Party, body: Any, peer: Party = Party.SUPERVISOR, **rest: Any) -> None:
        await self.dealers[party].send(encoder().encode(Envelope(peer=peer, body=body, **rest)))

    async def receive(self, party: Party) -> Envelope:
        data = await asyncio.wait_for(self.dealers[party].recv(), PATIENCE)
        return decoder(Envelope).decode(data)

    async def greet(self) -> None:
        for party in self.routers:
            await self.send(party, Hello(role=party, pid=os.getpid()))
        await self.until(lambda: len(self.handled) == len(self.routers))
        self.handled.clear()
        self.stage = WorkerStage.READY

    async def until(self, true: Callable[[], bool]) -> None:
        await until(true)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for sock in (*self.routers.values(), *self.dealers.values()):
            sock.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.context.term()


def drive(runtime: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        bench = Bench(runtime)
        try:
            await story(bench)
        finally:
            await bench.close()

    asyncio.run(run())


def test_a_request_to_the_supervisor_is_answered_with_its_id(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        await bench.send(Party.HANDSHAKE, SocketRequest(peer="192.0.2.1", port=443), id=41)
        answer = await bench.receive(Party.HANDSHAKE)
        assert (answer.id, answer.answer, answer.body) == (41, True, SocketGranted(number=3))

    drive(tmp_path, story)


def test_a_refusal_says_its_cause(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        bench.fails = MachineError.of("client underlay [::]:0", Cause.VERSION_MISSING)
        await bench.send(Party.HANDSHAKE, SocketRequest(peer="2001:db8::1", port=443), id=41)
        answer = (await bench.receive(Party.HANDSHAKE)).body
        assert answer == Refused(reason=str(bench.fails), cause=Cause.VERSION_MISSING)

    drive(tmp_path, story)


def test_a_request_to_another_worker_is_forwarded_with_its_true_source(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=7)
        asked = await bench.receive(Party.BPF_LOADER)
        assert (asked.peer, asked.body) == (Party.HANDSHAKE, CidAdopt(connection_id=CID))
        await bench.send(Party.BPF_LOADER, Done(), peer=Party.HANDSHAKE, id=asked.id, answer=True)
        answer = await bench.receive(Party.HANDSHAKE)
        assert (answer.id, answer.answer, answer.body) == (7, True, Done())

    drive(tmp_path, story)


def test_what_the_table_does_not_allow_is_dropped_and_counted(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        forged: list[tuple[Party, Any, Party, int]] = [
            (Party.BPF_LOADER, SocketRequest(peer="192.0.2.1", port=443), Party.SUPERVISOR, 5),
            (Party.BPF_LOADER, CidAdopt(connection_id=CID), Party.BPF_LOADER, 5),
            (Party.HANDSHAKE, Stop(), Party.BPF_LOADER, 5),
            (Party.HANDSHAKE, Heartbeat(), Party.DATAPLANE, 5),
            (Party.HANDSHAKE, RoleState(up=True, text=""), Party.SUPERVISOR, 5),  # one-way, not a request
            (Party.HANDSHAKE, Hello(role=Party.HANDSHAKE, pid=1), Party.SUPERVISOR, 0),  # once only
        ]
        for sender, body, peer, number in forged:
            await bench.send(sender, body, peer=peer, id=number)
        dealer = bench.dealers[Party.HANDSHAKE]
        for data in (b"", b"garbage", b"\xff" * 5000):
            await dealer.send(data)
        dropped = len(forged) + 3
        await bench.until(lambda: sum(router.dropped for router in bench.routers.values()) == dropped)
        await dealer.send_multipart([b"a", b"b", b"c"])  # and it is cut off
        await bench.until(lambda: sum(router.dropped for router in bench.routers.values()) == dropped + 1)
        assert not bench.handled
        assert len(bench.said) <= 4, "one line a role and interval"

    drive(tmp_path, story)


def test_nothing_is_heard_before_a_worker_has_started(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.send(Party.HANDSHAKE, SocketRequest(peer="192.0.2.1", port=443), id=1)
        await bench.until(lambda: bench.routers[Party.HANDSHAKE].dropped == 1)
        assert not bench.handled

    drive(tmp_path, story)


def test_whoever_waits_for_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=9)
        await bench.receive(Party.BPF_LOADER)
        bench.routers[Party.BPF_LOADER].abandon("the worker died")
        answer = await bench.receive(Party.HANDSHAKE)
        assert answer.body == Refused(reason="the worker died")
        await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=10)
        refused = (await bench.receive(Party.HANDSHAKE)).body
        assert isinstance(refused, Refused)
        assert "not running" in refused.reason

    drive(tmp_path, story)


def test_a_worker_that_does_not_answer_in_time_is_an_error(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        with pytest.raises(MachineError, match="did not answer"):
            await bench.routers[Party.BPF_LOADER].request(Party.SUPERVISOR, Heartbeat(), 0.1)

    drive(tmp_path, story)


def test_what_another_process_of_the_role_sends_is_dropped(tmp_path: Path) -> None:
    """The last words of a worker that died, once its successor has greeted."""

    async def story(bench: Bench) -> None:
        await bench.greet()
        router = bench.routers[Party.HANDSHAKE]
        stale = bench.context.socket(zmq.DEALER)
        stale.connect(endpoint(tmp_path, Party.HANDSHAKE))
        asked = asyncio.ensure_future(router.request(Party.SUPERVISOR, Heartbeat(), 5))
        number = (await bench.receive(Party.HANDSHAKE)).id
        for body, rest in ((RoleState(up=True, text="old"), {}), (Done(), {"id": number, "answer": True})):
            await stale.send(encoder().encode(Envelope(peer=Party.SUPERVISOR, body=body, **rest)))
        await bench.until(lambda: router.dropped == 2)
        assert not bench.handled
        assert not asked.done()
        await bench.send(Party.HANDSHAKE, Done(), id=number, answer=True)
        assert await asked == Done()
        stale.close()

    drive(tmp_path, story)


def test_a_request_too_many_is_answered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qre.supervisor.members.router.MAX_OPEN_REQUESTS", 2)

    async def story(bench: Bench) -> None:
        await bench.greet()
        for number in (1, 2, 3, 4):  # all at once: none has begun when the next one is read
            await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=number)
        for number in (3, 4):
            answer = await bench.receive(Party.HANDSHAKE)
            assert (answer.id, answer.body) == (number, Refused(reason="too many requests at once"))

    drive(tmp_path, story)


def test_of_one_way_messages_too_some_are_dropped_but_never_the_next_processs_hello(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        router = bench.routers[Party.NETLINK]
        for _ in range(MAX_ONE_WAY + 5):  # the handshake worker answers none
            await bench.send(Party.NETLINK, NetworkChanged(), peer=Party.HANDSHAKE)
        await bench.until(lambda: router.dropped == 5)
        router.abandon("the worker died")
        bench.stage = WorkerStage.SPAWNED
        await bench.send(Party.NETLINK, Hello(role=Party.NETLINK, pid=os.getpid()))
        await bench.until(lambda: len(bench.handled) == 1)
        assert router.dropped == 5

    drive(tmp_path, story)


def test_few_of_one_workers_requests_are_with_another_at_a_time(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        for number in range(1, 12):
            await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=number)
        first = [await bench.receive(Party.BPF_LOADER) for _ in range(4)]
        assert {each.peer for each in first} == {Party.HANDSHAKE}
        beat = asyncio.ensure_future(bench.routers[Party.BPF_LOADER].request(Party.SUPERVISOR, Heartbeat(), PATIENCE))
        asked = await bench.receive(Party.BPF_LOADER)
        assert isinstance(asked.body, Heartbeat), "it does not wait behind the others"
        for each in (asked, *first):
            await bench.send(Party.BPF_LOADER, Done(), peer=each.peer, id=each.id, answer=True)
        assert await beat == Done()
        assert [(await bench.receive(Party.HANDSHAKE)).id for _ in range(4)] == [1, 2, 3, 4]
        assert isinstance((await bench.receive(Party.BPF_LOADER)).body, CidAdopt)

    drive(tmp_path, story)


def test_more_bytes_than_one_worker_may_have_under_way_are_refused(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.greet()
        many = CidSync(connection_ids=tuple(number.to_bytes(20, "big") for number in range(4096)))
        room = MAX_OPEN_BYTES // len(encoder().encode(Envelope(peer=Party.BPF_LOADER, id=9, body=many)))
        for number in range(room + 1):
            await bench.send(Party.HANDSHAKE, many, peer=Party.BPF_LOADER, id=number + 1)
        answer = await bench.receive(Party.HANDSHAKE)
        assert (answer.id, answer.body) == (room + 1, Refused(reason="too many requests at once"))

    drive(tmp_path, story)


def test_what_a_process_asked_for_is_not_answered_to_the_next_one(tmp_path: Path) -> None:
    """Which numbers its own requests from the beginning, too."""

    async def story(bench: Bench) -> None:
        await bench.greet()
        router = bench.routers[Party.HANDSHAKE]
        await bench.send(Party.HANDSHAKE, CidAdopt(connection_id=CID), peer=Party.BPF_LOADER, id=1)
        asked = await bench.receive(Party.BPF_LOADER)
        router.abandon("the worker died")
        bench.stage = WorkerStage.SPAWNED
        await bench.send(Party.HANDSHAKE, Hello(role=Party.HANDSHAKE, pid=os.getpid()))
        await bench.until(lambda: len(bench.handled) == 1)
        await bench.send(Party.BPF_LOADER, Done(), peer=Party.HANDSHAKE, id=asked.id, answer=True)
        await asyncio.sleep(0.2)
        beat = asyncio.ensure_future(router.request(Party.SUPERVISOR, Heartbeat(), PATIENCE))
        first = await bench.receive(Party.HANDSHAKE)
        assert isinstance(first.body, Heartbeat), "and no answer before it"
        beat.cancel()

    drive(tmp_path, story)
