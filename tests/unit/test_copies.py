"""Copies of a first flight that resumed: they get what a returning client gets, lead to nothing, and are bounded."""

from __future__ import annotations

import os
import random as randomness
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qre.quic.client.hello import make_hello
from qre.quic.server.coming_back import returning
from qre.quic.server.inspector import Authenticated, HelloInspector, Undecided
from qre.reality.replay import ReplayFilter
from qre.visit.visitor_files import load_fingerprint
from qre.wire.packet import PacketType, packets_untrusted
from qre.workers.handshake.acceptance import Acceptance
from qre.workers.handshake.port.flow_effects import Copied
from qre.workers.handshake.port.flow_parts import Flow, FlowState, Hello
from qre.workers.handshake.recognition.accepted import LIFETIME, Accepted
from qre.workers.handshake.recognition.copies import MOST_COPIES, Copies, Copy
from tests.support.pair import CLIENT, NAME, SHORT_ID, UNIX_TIME
from tests.support.returning import caddys_profile
from tests.unit.test_handshake_flows import VISITOR, FakeHandshake, World, hello
from tests.unit.test_resumption import back, known


@cache
def copied() -> tuple[Authenticated, list[bytes], list[bytes]]:
    """What a server found in a first flight, the flight, and what Dest answered to it."""
    pair = back().run()
    flight = [data for by, data in pair.sent if by][:4]
    inspector = HelloInspector(server_name=NAME, private_key=known()[0], short_ids=[SHORT_ID], max_time_diff_ms=0)
    (found,) = {
        each for data in flight[:2] if isinstance(each := inspector.datagram_received(data, 0), Authenticated)
    }
    return found, flight, [of_dest for of_dest, _ in pair.mirrored]


@dataclass
class Genuine:
    """What ``Copies`` needs of ``Acceptance``; what is said is written down."""

    volley: Any = None
    imitated: bool = False
    unrecorded: str = ""
    said: list[bytes] = field(default_factory=list)
    farewells: list[bytes] = field(default_factory=list)
    ended: int = 0

    def __post_init__(self) -> None:
        say = lambda source, data, ecn, whole=False: self.said.append(data)  # noqa: E731
        self.volley = SimpleNamespace(say=say, then=lambda step: step(), let_out=lambda: None)
        self.replay = ReplayFilter(b"", 121)
        self.replay.accept(copied()[0].random_hash, SHORT_ID, UNIX_TIME)
        self.dest, self.keeper = caddys_profile(), known()[1]
        self.copies = Copies(cast(Any, self), os.urandom, self.volley)

    def imitate(self) -> bool:
        return self.imitated

    def new_handshake(self, *arguments: Any) -> Any:
        parts = SimpleNamespace(
            private_key=known()[0].private_bytes_raw(),
            dest=self.dest,
            routed_cid_len=0,
            sessions=SimpleNamespace(settings=SimpleNamespace(splits=True)),
            keeper=self.keeper,
        )
        return Acceptance.new_handshake(cast(Any, parts), *arguments)

    def send(self, one: Accepted, now: float) -> None:
        self.said += one.inner.datagrams_to_send(now)

    def send_due(self, one: Accepted, now: float) -> None:
        pass

    def next_time(self, one: Accepted) -> float | None:
        own = one.inner.timer()
        return one.ends_at if own is None else min(own, one.ends_at)

    def left(self, one: Accepted, farewell: bytes) -> None:
        self.farewells.append(farewell)

    def not_followed(self, one: Accepted) -> None:
        one.abandon()

    def over(self, one: Accepted) -> None:
        self.ended += 1

    def is_taken(self, cid: bytes, by: Accepted) -> bool:
        return False

    def mark_of(self, data: bytes) -> int:
        return 0

    def comes(self, now: float = 100.0, **changes: Any) -> Copy | None:
        found, flight, _ = copied()
        return self.copies.of(Hello(replace(found, **changes), flight[:2], CLIENT, now, None))


def played(world: Genuine) -> Copy:
    """A copy that Dest has answered."""
    copy = world.comes()
    assert copy is not None
    copy.begin(100.0)
    for data in copied()[1][2:]:
        copy.datagram_received(data, 100.0)
    for data in copied()[2]:
        copy.dest_spoke(data, 0, 100.01)
    return copy


def test_a_copy_gets_the_flight_of_a_recorded_return_and_dest_is_not_told() -> None:
    world = Genuine()
    played(world)
    flight = caddys_profile().returns[0].flight
    for made, datagram in zip(world.said, flight, strict=False):
        kinds = [each.type for each in packets_untrusted(made, short_cid_length=0)]
        assert kinds == [PacketType.ONE_RTT if each.kind == 3 else PacketType(each.kind) for each in datagram.packets]
    assert world.farewells == [b""], "a site would know the connection for as long as Dest does"


def test_its_handshake_is_under_a_key_that_nobody_has() -> None:
    found = copied()[0]
    keeper, dest = known()[1], caddys_profile()
    genuine = returning(found, keeper, dest, os.urandom)
    copies = [returning(replace(found, repeated=True), keeper, dest, os.urandom) for _ in range(2)]
    assert genuine is not None and all(copies)
    secrets = {each.resumption.secret for each in (genuine, *copies) if each is not None}
    assert len(secrets) == 3


def test_the_request_in_its_early_data_is_never_asked() -> None:
    world = Genuine()
    copy = played(world)
    assert copy.inner._connect_ip is None
    assert copy.inner.next_event() is None


def test_a_copy_gets_three_times_what_it_sent_and_ends() -> None:
    world = Genuine()
    played(world)
    while (at := world.copies.timer()) is not None:
        world.copies.handle_timer(at)
    assert (world.ended, len(world.copies)) == (1, 0)
    assert 2400 < sum(map(len, world.said)) <= 3 * sum(map(len, copied()[1]))


def test_copies_are_bounded_and_what_is_more_is_dests() -> None:
    world = Genuine()
    made = [world.comes() for _ in range(MOST_COPIES + 3)]
    assert made.count(None) == 3
    for one in list(world.copies._all):
        one.abandon()
    assert world.comes(100.0 + LIFETIME / 2) is None, "whoever ends his copies has no more of them"
    assert world.comes(100.0 + LIFETIME) is not None


def test_what_is_no_copy_is_dests() -> None:
    world = Genuine()
    found, _, _ = copied()
    false = found.client_hello[:-1] + bytes([found.client_hello[-1] ^ 1])
    assert world.comes(client_hello=false) is None
    assert world.comes(ticket=None) is None
    assert world.comes(random_hash=bytes(16)) is None, "it was refused for another reason: its client gets Dest"
    assert world.comes(retry_source_cid=bytes(8)) is None
    assert world.comes() is not None
    world.unrecorded = "no space left"
    assert world.comes() is None
    assert Genuine(imitated=True).comes() is None


@pytest.mark.parametrize("resumed", [True, False])
def test_a_hello_whose_time_is_over_is_a_copy_if_it_resumes_and_else_a_strangers(*, resumed: bool) -> None:
    offered = make_hello(
        load_fingerprint(),
        NAME,
        public_key=known()[0].public_key().public_bytes_raw(),
        short_id=SHORT_ID,
        unix_time=UNIX_TIME,
        random=randomness.Random(1),
        ticket=known()[2] if resumed else None,
    )
    inspector = HelloInspector(
        server_name=NAME, private_key=known()[0], short_ids=[SHORT_ID], max_time_diff_ms=60_000
    )
    inspector._original_cid = bytes(8)
    assert isinstance(inspector._decide(offered.message, UNIX_TIME * 1000), Authenticated)
    late = inspector._decide(offered.message, (UNIX_TIME + 3600) * 1000)
    if not resumed:
        assert late is Undecided.STRANGER
        return
    assert isinstance(late, Authenticated) and late.repeated
    parts = cast(Any, SimpleNamespace(replay=ReplayFilter(b"", 121)))
    assert Acceptance.remember(parts, late) is False
    assert len(parts.replay) == 0


# --- the flow ---


class Copying(World):
    """Every hello is a copy."""

    def accept(self, flow: Flow, hello: Hello) -> Any:
        made = super().accept(flow, hello)
        return Copied(made) if isinstance(made, FakeHandshake) and not self.live else made


def test_a_copys_flow_leaves_nothing_behind() -> None:
    world = Copying()
    world.come(hello(b"client"))
    world.answer(b"of dest")
    (handshake,) = world.handshakes
    assert handshake.of_dest == [(b"of dest", 0)] and world.replies == []
    handshake.leave(b"")
    assert world.flows[VISITOR].state is FlowState.LEFT
    world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    assert (world.flows[VISITOR].state, world.open, world.table.pending) == (FlowState.NONE, 0, 0)


def test_no_genuine_handshake_gives_way_to_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qre.workers.handshake.port.flow_books.MAX_OURS", 2)
    world = Copying(live=True)
    for port in range(2):
        world.come(hello(b"client"), (VISITOR[0], 1000 + port))
    world.live = False
    for port in range(3):
        world.come(hello(b"client"), (VISITOR[0], 2000 + port))
    assert [each.abandoned for each in world.handshakes] == [False] * 5
