"""A hello that a common store has to take first: what becomes of its flow until the store has answered, and then."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from qre.workers.handshake.port.flow_parts import Flow, FlowState, Handshake, Hello
from qre.workers.handshake.port.performer import Performer
from qre.workers.handshake.recognition.recogniser import Recogniser
from tests.unit.test_handshake_flows import VISITOR, FakeHandshake, World, hello, retry


class FakeStore:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[bool], None]] = []

    def ask(self, digest: bytes, seconds: int, answered: Callable[[bool], None]) -> None:
        self.asked.append(answered)


class Asking(World):
    """The world of the flow table, whose hellos go to a store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store = FakeStore()
        self.recorded = 0
        acceptance = SimpleNamespace(
            remember=self.remember, admit=self.admit, replay=SimpleNamespace(window=121), unrecorded=""
        )
        self.recogniser = Recogniser(
            cast(Any, SimpleNamespace(internal_error=None)),
            cast(Any, acceptance),
            cast(Any, None),
            lambda: {bytes(8)},
            self.table,
            lambda effects, now: self.perform(effects),
            lambda: None,
            lambda hello: None,
        )
        self.recogniser._store = cast(Any, self.store)
        self.performer = Performer(
            self.table, self.recogniser.accept, self.open_relay, self.to_visitor, self.forgotten
        )

    def remember(self, found: object) -> bool:
        self.recorded += 1
        return not self.replayed

    def admit(self, found: Hello) -> Handshake:
        self.handshakes.append(FakeHandshake(self, found.datagrams, found.source))
        return self.handshakes[-1]

    @property
    def flow(self) -> Flow:
        return self.flows[VISITOR]


def test_a_new_hello_begins_when_the_store_has_it() -> None:
    world = Asking()
    world.come(hello(b"half"))
    world.come(hello(b"client"))
    assert (world.handshakes, world.flow.state) == ([], FlowState.WATCHED)
    assert world.to_dest() == [hello(b"half"), hello(b"client")], "Dest has it at once"
    world.store.asked[0](True)
    (handshake,) = world.handshakes
    assert handshake.began and handshake.datagrams == [hello(b"half"), hello(b"client")]
    world.answer(b"of dest")
    assert handshake.of_dest == [(b"of dest", 0)] and world.replies == []


def test_what_comes_in_between_belongs_to_the_handshake_and_is_asked_for_once() -> None:
    world = Asking()
    for text in (b"client", b"client again", b"client once more"):
        world.come(hello(text))
    assert (len(world.store.asked), world.recorded) == (1, 1)
    world.store.asked[0](True)
    (handshake,) = world.handshakes
    assert handshake.datagrams == [hello(b"client"), hello(b"client again"), hello(b"client once more")]


def test_a_hello_that_another_server_has_taken_is_a_strangers() -> None:
    world = Asking()
    world.come(hello(b"client"))
    world.store.asked[0](False)
    world.answer(b"of dest")
    assert world.flow.state is FlowState.RELAY
    assert (world.handshakes, world.replies) == ([], [(VISITOR, b"of dest", 0)])


def test_one_that_this_server_has_taken_is_not_asked_for() -> None:
    world = Asking(replayed=True)
    world.come(hello(b"client"))
    assert (world.store.asked, world.flow.state) == ([], FlowState.RELAY)


def test_a_store_that_is_slower_than_dest_lets_nobody_in() -> None:
    world = Asking()
    world.come(hello(b"client"))
    world.answer(b"of dest")
    assert world.replies == [(VISITOR, b"of dest", 0)], "it is not late"
    world.store.asked[0](True)
    assert (world.handshakes, world.flow.state) == ([], FlowState.RELAY)


def test_a_retry_of_dest_in_between_makes_the_client_a_stranger() -> None:
    world = Asking()
    world.come(hello(b"client"))
    world.answer(retry(b"retried!"))
    world.store.asked[0](True)
    assert world.handshakes == []


def test_an_answer_to_a_flow_that_is_gone_changes_nothing() -> None:
    world = Asking()
    world.come(hello(b"client"))
    world.wait(60.0)
    world.come(hello(b"client"))  # from the same address, later
    assert len(world.store.asked) == 2
    world.store.asked[0](True)
    assert world.handshakes == []
    world.store.asked[1](True)
    assert len(world.handshakes) == 1
