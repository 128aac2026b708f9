"""The connection to a replay store: whatever becomes of it, whoever asked is answered once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from qre.errors import MachineError
from qre.reality.hello_store import StoreConnection
from qre.supervisor.store_connection import StoreAttempts
from qre.workers.handshake.recognition import store_link
from qre.workers.handshake.recognition.store_link import ReplayStoreLink

DIGEST = bytes(16)


class Store:
    """The other end of each connection, and what the link says of it."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []
        self.told: list[str] = []
        self.answers: list[bool] = []
        self.refuses = False
        self.link = ReplayStoreLink(lambda: StoreConnection("qre:"), self.connect, self.told.append)

    async def connect(self) -> None:
        if self.refuses:
            raise MachineError("replay store", "Connection refused")
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        self.link.use(ours.detach())

    def ask(self) -> None:
        self.link.ask(DIGEST, 121, self.answers.append)

    async def says(self, data: bytes) -> None:
        self.ends[-1].send(data)
        await asyncio.sleep(0.02)


def drive(story: Callable[[Store], Awaitable[None]]) -> Store:
    """``story`` with a link that runs; every socket is closed."""
    store = Store()

    async def whole() -> None:
        running = asyncio.get_running_loop().create_task(store.link.run())
        await asyncio.sleep(0.02)
        try:
            await story(store)
        finally:
            running.cancel()
            store.link.close()
            for end in store.ends:
                end.close()

    asyncio.run(whole())
    return store


def test_hellos_are_answered_in_their_order() -> None:
    async def story(store: Store) -> None:
        await store.says(b"+PONG\r\n")
        for _ in range(3):
            store.ask()
        await store.says(b"+OK\r\n$-1\r\n+OK\r\n")

    store = drive(story)
    assert store.answers == [True, False, True] and store.told[0] == ""


def test_nobody_is_new_before_the_store_has_let_us_in() -> None:
    async def story(store: Store) -> None:
        store.ask()
        assert store.answers == [False]
        await store.says(b"-WRONGPASS invalid username-password pair\r\n")
        store.ask()

    store = drive(story)
    assert store.answers == [False, False]
    assert store.told == ["the replay store does not answer (it says WRONGPASS invalid username-password pair)"]


@pytest.mark.parametrize("how", ["closed", "garbage", "silent", "another"])
def test_when_a_connection_ends_whoever_waits_hears_no(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(store_link, "_PATIENCE", 0.1)

    async def story(store: Store) -> None:
        await store.says(b"+PONG\r\n")
        store.ask()
        store.ask()
        match how:
            case "closed":
                store.ends[-1].close()
            case "garbage":
                await store.says(b"HTTP/1.1 400 Bad Request\r\n")
            case "silent":
                await asyncio.sleep(0.2)
            case _:
                await store.connect()
        await asyncio.sleep(0.05)
        assert store.answers == [False, False]

    assert len(drive(story).answers) == 2


def test_it_connects_again_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_link, "_PAUSE", 0.05)

    async def story(store: Store) -> None:
        await store.says(b"+PONG\r\n")
        store.refuses = True
        store.ends[-1].close()
        await asyncio.sleep(0.2)
        store.ask()
        assert store.answers == [False]
        store.refuses = False
        await asyncio.sleep(0.1)
        await store.says(b"+PONG\r\n")
        store.ask()
        await store.says(b"+OK\r\n")

    store = drive(story)
    assert store.answers == [False, True]
    assert store.told[0] == store.told[-1] == "" and "Connection refused" in store.told[-2]


def test_those_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_link, "_MAX_WAITING", 3)

    async def story(store: Store) -> None:
        await store.says(b"+PONG\r\n")
        for _ in range(5):
            store.ask()
        assert store.answers == [False, False]
        await store.says(b"+OK\r\n" * 3)

    assert drive(story).answers == [False, False, True, True, True]


def test_one_attempt_to_connect_at_a_time() -> None:
    """A worker that asks again and again holds one socket of its supervisor."""

    async def ask() -> None:
        with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
            listening.bind(("127.0.0.1", 0))
            listening.listen(0)  # its queue is full: whoever connects now waits
            for each in (first, second):
                each.setblocking(False)
                each.connect_ex(listening.getsockname())
            place = "{}:{}".format(*listening.getsockname())
            attempts = StoreAttempts()
            slow = asyncio.create_task(attempts.connect(place))
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(MachineError, match="an attempt to connect is under way"):
                    await attempts.connect(place)
            with pytest.raises(MachineError, match="no answer"):
                await slow
            for each in (listening.accept()[0], listening.accept()[0]):
                each.close()
            _, made = await attempts.connect(place)
            made.close()

    asyncio.run(ask())
