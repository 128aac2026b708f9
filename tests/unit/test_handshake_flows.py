"""Who a datagram belongs to: the table of flows under a virtual clock, with a recorded world around it."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qre.quic.server.inspector import STRANGER, UNDECIDED, Authenticated, Verdict
from qre.quic.server.server_handshake import ShownByDest
from qre.reality.authenticator import SharedSecrets
from qre.wire.packet import PacketType, build_long_header, retry_source_cid
from qre.wire.protection import Protection, initial_secrets
from qre.workers.handshake.port import classification, flow_books, flows
from qre.workers.handshake.port.classification import may_begin_hello
from qre.workers.handshake.port.flow_effects import Effect
from qre.workers.handshake.port.flow_parts import Address, Flow, FlowState, Handshake, Hello, Limits
from qre.workers.handshake.port.flow_rules import RULES, FlowEvent, FlowRule
from qre.workers.handshake.port.flows import FlowTable
from qre.workers.handshake.port.performer import Later, Performer

VISITOR = ("198.51.100.7", 40_000)
HELLO = b"\xc3\x00\x00\x00\x01\x08" + bytes(8) + b"\x00"
OUR_CID = b"ours" * 5
#: To a connection ID that no handshake has.
OTHER = (b"\xc3\x00\x00\x00\x01\x04else\x00" + b"stranger").ljust(1250, b"\x00")


def hello(text: bytes) -> bytes:
    """A datagram that may begin a ClientHello; the fake inspector reads ``text``."""
    return (HELLO + text).ljust(1250, b"\x00")


def retry(cid: bytes) -> bytes:
    return b"\xf0\x00\x00\x00\x01\x00" + bytes([len(cid)]) + cid + bytes(40)


def another(cid: bytes) -> bytes:
    """An Initial of another connection than a client's, with this source connection ID."""
    return build_long_header(PacketType.INITIAL, b"further!", cid, b"\0", 1200).ljust(1250, b"\0")


def own_cid(data: bytes) -> bytes | None:
    return OUR_CID if data[1:21] == OUR_CID else None


class FakeInspector:
    """Says what the datagram tells it to say."""

    opened = False

    def __init__(self, world: World) -> None:
        self.world = world
        self.retries: list[bytes] = []
        world.inspectors.append(self)

    def datagram_received(self, data: bytes, unix_time_ms: int) -> Verdict:
        self.world.inspected += 1
        self.opened = b"garbage" not in data
        if b"half" in data:
            return UNDECIDED
        if b"client" in data:
            return Authenticated(b"", b"", SharedSecrets(b"", b"", b""), "", bytes(8), (0, 1, 0), 0, bytes(8))
        return STRANGER

    def retry_relayed(self, source_cid: bytes) -> None:
        self.retries.append(source_cid)

    def cid_shown(self, source_cid: bytes) -> None:
        self.retries.append(b"shown " + source_cid)


class FakeHandshake:
    """``following``: what Dest says is written down, until the test says that it has left."""

    def __init__(self, world: World, datagrams: list[bytes], source: Address) -> None:
        self.world, self.source = world, source
        self.datagrams = datagrams
        self.of_dest: list[tuple[bytes, int]] = []
        self.retries: list[bytes] = []
        self.cids: list[bytes] = [bytes(8), b"dest"]
        self.hello_cid = bytes(8)
        self.began = self.abandoned = False

    def begin(self, now: float) -> None:
        self.began = True
        if self.world.imitated:
            self.leave(b"")

    def datagram_received(self, data: bytes, now: float) -> None:
        self.datagrams.append(data)

    def dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        self.of_dest.append((data, ecn))
        if data == b"unfollowed":
            self.world.perform(self.world.table.not_followed(self.source, self))

    def dest_retried(self, retry: bytes, now: float) -> None:
        self.retries.append(retry)

    def leave(self, farewell: bytes = b"farewell") -> None:
        self.world.perform(self.world.table.left(self.source, self, farewell, self.world.now))

    def abandon(self) -> None:
        self.abandoned = True
        self.world.table.handshake_over(self.source, self, self.world.now)


class FakeRelay:
    def __init__(self, world: World) -> None:
        self.world = world
        self.sent: list[tuple[bytes, int]] = []
        self.closed = False

    def send(self, data: bytes, ecn: int) -> None:
        assert not self.closed
        self.sent.append((data, ecn))

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.world.open -= 1


@dataclass
class World:
    """A fake world: what the table asks of it is written down."""

    limits: Limits = field(default_factory=lambda: Limits(64, 8, 30.0))
    now: float = 1000.0
    replayed: bool = False
    dest: bool = True
    imitated: bool = False
    live: bool = False
    sessions: set[bytes] = field(default_factory=set)  # connection IDs
    crowded: bool = False  # what begins takes the place of all others
    slow: bool = False  # a store has to take the hello first
    open: int = 0
    inspected: int = 0
    shown: ShownByDest | None = None
    relays: dict[Address, list[FakeRelay]] = field(default_factory=dict)
    flows: dict[Address, Flow] = field(default_factory=dict)
    handshakes: list[FakeHandshake] = field(default_factory=list)
    asked: dict[Flow, Hello] = field(default_factory=dict)
    inspectors: list[FakeInspector] = field(default_factory=list)
    replies: list[tuple[Address, bytes, int]] = field(default_factory=list)
    resets: list[tuple[Address, bytes, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = FlowTable(self.limits, lambda: FakeInspector(self), own_cid, self.lives)
        self.performer = Performer(self.table, self.accept, self.open_relay, self.to_visitor, self.forgotten)

    def lives(self, cids: Collection[bytes]) -> bool:
        return any(cid in self.sessions for cid in cids)

    def accept(self, flow: Flow, hello: Hello) -> Handshake | Later | None:
        if self.replayed:
            return None
        if self.crowded:
            for one in self.handshakes[-8:]:
                one.abandon()
        if self.slow and flow.state is FlowState.WATCHED:
            self.asked[flow] = hello
            return Later.LATER
        return self.admit(hello)

    def admit(self, hello: Hello) -> FakeHandshake:
        self.shown = hello.shown
        self.handshakes.append(FakeHandshake(self, hello.datagrams, hello.source))
        return self.handshakes[-1]

    def store_answers(self) -> None:
        """As ``Recogniser`` takes it."""
        asked, self.asked = self.asked, {}
        for flow, hello in asked.items():
            if flow.state is FlowState.WATCHED:
                self.perform(self.table.hello_accepted(flow, self.admit(hello)))

    def open_relay(self, flow: Flow) -> FakeRelay | None:
        if not self.dest:
            return None
        self.flows[flow.source] = flow
        self.relays.setdefault(flow.source, []).append(FakeRelay(self))
        self.open += 1
        return self.relays[flow.source][-1]

    def to_visitor(self, source: Address, data: bytes, ecn: int, segment: int) -> None:
        self.replies.append((source, data, ecn))

    def forgotten(self, source: Address, cid: bytes, length: int) -> None:
        if not self.live:
            self.resets.append((source, cid, length))

    # --- driving ---

    def come(self, data: bytes, source: Address = VISITOR, ecn: int = 0) -> None:
        """It comes and nothing waits behind it."""
        self.arrive(data, source, ecn)
        self.look()

    def arrive(self, data: bytes, source: Address = VISITOR, ecn: int = 0) -> None:
        """It comes, and others may wait behind it."""
        self.perform(self.table.datagram(source, data, ecn, self.now, int(self.now * 1000)))

    def look(self) -> None:
        self.performer.look(self.now)

    def answer(self, data: bytes, source: Address = VISITOR, ecn: int = 0) -> None:
        self.look()
        self.perform(self.table.reply(self.flows[source], data, ecn, self.now))

    def perform(self, effects: Sequence[Effect]) -> None:
        self.performer.perform(effects, self.now)

    def wait(self, seconds: float) -> None:
        """Timers fire when they are due."""
        end = self.now + seconds
        while (at := self.table.timer()) is not None and at <= end:
            self.now = max(self.now, at)
            self.perform(self.table.handle_timer(self.now))
        self.now = end

    def to_dest(self, source: Address = VISITOR) -> list[bytes]:
        return [data for relay in self.relays.get(source, []) for data, _ in relay.sent]


def test_what_is_no_hello_goes_to_dest_at_once_with_its_mark() -> None:
    world = World()
    for data in (b"garbage", b"", b"\x00", b"\x41" + bytes(50), HELLO, b"\xc3\x6b\x33\x43\xcf".ljust(1250, b"\x00")):
        world.come(data, ecn=2)
    assert world.to_dest() == [
        b"garbage",
        b"",
        b"\x00",
        b"\x41" + bytes(50),
        HELLO,
        b"\xc3\x6b\x33\x43\xcf".ljust(1250, b"\x00"),
    ]
    assert {ecn for _, ecn in world.relays[VISITOR][0].sent} == {2}
    assert world.inspected == 0
    assert world.table.strangers == 1


def test_what_dest_says_goes_back_as_it_came() -> None:
    world = World()
    world.come(b"garbage".ljust(60))
    for data in (b"\x80\x00\x00\x00\x00versions", retry(b"abcd"), b"", bytes(21)):
        world.answer(data, ecn=1)
        assert world.replies[-1] == (VISITOR, data, 1)


def test_a_client_of_ours_is_shadowed_until_it_has_finished() -> None:
    world = World()
    world.arrive(hello(b"first half"), ecn=1)
    world.arrive(hello(b"client"))
    assert world.to_dest() == [hello(b"first half"), hello(b"client")], "forwarded first"
    assert world.inspected == 0
    world.look()
    (handshake,) = world.handshakes
    assert handshake.datagrams == [hello(b"first half"), hello(b"client")]
    assert handshake.began
    world.answer(b"flight", ecn=2)
    assert handshake.of_dest == [(b"flight", 2)]
    assert not world.replies, "nothing of Dest is shown to a client of ours"
    world.come(b"\x41more")
    assert handshake.datagrams[-1] == world.to_dest()[-1] == b"\x41more", "Dest sees what a visitor sends"
    handshake.leave()
    assert world.to_dest()[-1] == b"farewell"
    world.come(b"\x41dest, mine")
    assert handshake.datagrams[-1] == b"\x41dest, mine"
    assert world.to_dest()[-1] == b"farewell", "what is ours goes to Dest no more"
    assert world.table.strangers == 0


def test_what_is_not_for_the_clients_connection_goes_to_dest_and_back() -> None:
    """A prober in the client's name: an unknown version, another connection, garbage."""
    probes = [b"\xc3\x6b\x33\x43\xcf\x08unknown!\x00", b"\x41other", b"garbage", b"\xc3\x00\x00\x00\x01\x04else\x00"]
    world = World()
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    handshake.leave()
    for probe in probes:
        world.come(probe, ecn=1)
        assert world.to_dest()[-1] == probe
    assert len(handshake.datagrams) == 1
    world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    for probe in probes:
        world.come(probe)
        assert world.to_dest()[-1] == probe
    world.answer(b"\x80\x00\x00\x00\x00versions")
    assert world.replies == [(VISITOR, b"\x80\x00\x00\x00\x00versions", 0)]


def test_what_dest_still_says_to_a_visit_that_is_over_is_dropped() -> None:
    late = build_long_header(PacketType.HANDSHAKE, b"", b"dest", number=b"\0", length=17) + bytes(16)
    other = build_long_header(PacketType.HANDSHAKE, b"", b"else", number=b"\0", length=17) + bytes(16)
    world = World()
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    handshake.leave()
    for over in (False, True):
        if over:
            world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
        world.replies.clear()
        for data in (late, other, b"\x41late"):
            world.answer(data)
        assert world.replies == [(VISITOR, other, 0)]
    world.now += classification.ECHO
    world.answer(b"\x41another connection's")
    assert world.replies[-1] == (VISITOR, b"\x41another connection's", 0)


def test_a_dest_that_cannot_be_followed_is_shown_as_it_is() -> None:
    world = World()
    world.come(hello(b"client"))
    world.answer(b"unfollowed")
    assert world.handshakes[0].abandoned
    world.answer(b"flight")
    assert world.replies == [(VISITOR, b"flight", 0)]
    world.come(hello(b"client"))
    assert len(world.handshakes) == 1, "decided is decided"
    assert world.table.strangers == 1


def test_a_retry_while_dest_is_followed_begins_the_handshake_again() -> None:
    world = World()
    world.come(hello(b"client"))
    world.answer(retry(b"abcd"))
    assert world.handshakes[0].retries == [retry(b"abcd")]
    assert world.replies == [(VISITOR, retry(b"abcd"), 0)]


def test_a_dest_that_is_imitated_hears_nothing_more() -> None:
    world = World(dest=False, imitated=True)
    world.come(hello(b"client"))
    world.dest = True
    world.come(HELLO + b"mine")
    assert world.handshakes[0].datagrams[-1] == HELLO + b"mine"
    assert not world.relays


def test_a_strangers_hello_goes_to_dest_whole_and_in_order() -> None:
    world = World()
    world.come(hello(b"half 1"), ecn=1)
    world.come(hello(b"stranger"))
    assert world.relays[VISITOR][0].sent == [(hello(b"half 1"), 1), (hello(b"stranger"), 0)]
    world.come(hello(b"client"))
    assert not world.handshakes, "decided is decided"


def test_an_undecided_flow_may_become_ours_until_dest_has_answered() -> None:
    world = World()
    world.come(hello(b"half 1"))
    world.wait(0.5)
    world.come(hello(b"client"))
    assert world.handshakes[0].datagrams == [hello(b"half 1"), hello(b"client")]

    world = World()
    world.come(hello(b"half 1"))
    world.wait(0.5)
    world.answer(b"an answer")
    world.come(hello(b"client"))
    assert not world.handshakes
    assert world.to_dest() == [hello(b"half 1"), hello(b"client")]
    assert world.replies == [(VISITOR, b"an answer", 0)]


def test_the_verdict_comes_before_dests_first_reply_is_read() -> None:
    world = World()
    world.arrive(hello(b"half 1"))
    world.arrive(hello(b"client"))
    world.arrive(hello(b"client, again"))
    world.answer(b"flight")
    (handshake,) = world.handshakes
    assert handshake.datagrams == [hello(b"half 1"), hello(b"client"), hello(b"client, again")]
    assert handshake.of_dest == [(b"flight", 0)]


def acknowledgement(first_cid: bytes, source: bytes, number: int, payload: bytes = b"\x02\x01\x00\x00\x00") -> bytes:
    """An Initial of a site, with an ACK frame unless something else is wanted."""
    header = build_long_header(
        PacketType.INITIAL, b"", source, number=number.to_bytes(1, "big"), length=len(payload) + 17
    )
    return Protection(initial_secrets(first_cid)[1]).protect(header, number, payload)


def test_what_dest_only_acknowledged_may_be_taken_over() -> None:
    world = World()
    world.come(hello(b"half 1"))
    world.wait(0.5)
    for number in (0, 1):
        world.answer(acknowledgement(bytes(8), b"dest", number))
    assert len(world.replies) == 2, "the visitor sees them"
    assert world.inspectors[0].retries == [b"shown dest", b"shown dest"]
    world.come(hello(b"client"))
    assert world.shown == ShownByDest(b"dest", 1)


@pytest.mark.parametrize(
    "replies",
    [
        [acknowledgement(bytes(8), b"dest", 0, b"\x06\x00\x05hello")],
        [acknowledgement(bytes(8), b"dest", 0, b"\x1c\x00\x00\x00\x00")],
        [acknowledgement(bytes(8), b"", 0)],
        [acknowledgement(bytes(8), b"dest", 0), acknowledgement(bytes(8), b"tsed", 1)],
        [acknowledgement(bytes(8), b"dest", 0) + acknowledgement(bytes(8), b"dest", 1, b"\x06\x00\x05hello")],
        [acknowledgement(bytes(8), b"dest", 0), retry(b"abcd")],
        [acknowledgement(b"another!", b"dest", 0)],
        [b"\x80\x00\x00\x00\x00\x00\x00versions"],
        [b"\x41" + bytes(40)],
        [b""],
    ],
)
def test_more_than_an_acknowledgement_cannot_be_taken_back(replies: list[bytes]) -> None:
    world = World()
    world.come(hello(b"half 1"))
    world.wait(0.5)
    for data in replies:
        world.answer(data)
    world.come(hello(b"client"))
    assert not world.handshakes
    assert [data for _, data, _ in world.replies] == replies


def test_a_retry_of_dest_starts_the_inspection_again() -> None:
    world = World()
    world.come(hello(b"half 1"))
    world.wait(0.5)
    world.answer(retry(b"abcd"))
    assert world.inspectors[0].retries == [b"abcd"]
    world.come(hello(b"half 1 again"))
    world.come(hello(b"client"))
    assert world.handshakes[0].datagrams == [hello(b"half 1 again"), hello(b"client")]
    assert world.replies == [(VISITOR, retry(b"abcd"), 0)]


def test_a_repeated_hello_is_a_strangers() -> None:
    world = World(replayed=True)
    world.come(hello(b"half 1"))
    world.come(hello(b"client"))
    assert world.to_dest() == [hello(b"half 1"), hello(b"client")]
    assert not world.handshakes


def test_our_own_forgotten_ids_are_disowned_and_those_of_live_sessions_are_left_alone() -> None:
    world = World()
    world.come(b"\x41" + OUR_CID + bytes(30))
    assert world.resets == [(VISITOR, OUR_CID, 51)]
    world.live = True
    world.come(b"\x41" + OUR_CID + bytes(30))
    assert len(world.resets) == 1
    world.live = False
    world.come(b"garbage")
    world.come(b"\x41" + OUR_CID + bytes(30))
    assert len(world.resets) == 2, "also from an address that is relayed"
    assert world.to_dest() == [b"garbage"]


def test_after_its_handshake_what_comes_for_it_is_dropped_for_a_while() -> None:
    world = World()
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    handshake.leave()
    world.table.handshake_over(VISITOR, handshake, world.now)
    seen, sent = len(handshake.datagrams), len(world.to_dest())
    for data in (b"\x41dest, late", HELLO):
        world.come(data)
    assert len(handshake.datagrams) == seen
    assert len(world.to_dest()) == sent
    world.come(b"\x41" + OUR_CID + bytes(30))
    assert len(world.resets) == 1
    world.wait(31)
    assert world.open == 0
    world.come(b"\x41dest, late")
    assert world.to_dest()[-1] == b"\x41dest, late"


def repeated_hello(*, remembers: bool, source: Address) -> World:
    """A client's session lives, and its first flight comes again after a minute."""
    world = World(limits=Limits(64, 64, 180.0, remembers_hello=remembers))
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    handshake.leave()
    world.sessions = {b"dest"}
    world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    world.wait(60)
    for relay in world.relays.pop(VISITOR):
        assert relay.closed
    world.replayed = True
    world.come(hello(b"client"), source)
    return world


@pytest.mark.parametrize("source", [VISITOR, ("192.0.2.77", 7)])
def test_a_hello_whose_session_lives_is_answered_by_silence_where_dest_would_know_it(source: Address) -> None:
    world = repeated_hello(remembers=True, source=source)
    assert not world.relays
    world.come(hello(b"client")[:600], source)
    assert not world.relays, "a site that knows the connection ID does not look at lengths"
    world.come(b"\xc3\x1a" + hello(b"client")[2:], source)
    assert len(world.to_dest(source)) == 1, "an unknown version has an answer"
    world.sessions.clear()
    world.come(hello(b"client"), source)
    assert len(world.to_dest(source)) == 2, "the session has ended"


@pytest.mark.parametrize("source", [VISITOR, ("192.0.2.77", 7)])
def test_where_dest_forgets_it_the_hello_is_a_strangers(source: Address) -> None:
    world = repeated_hello(remembers=False, source=source)
    assert world.to_dest(source) == [hello(b"client")]
    assert world.flows[source].state is FlowState.RELAY


@pytest.mark.parametrize("over", [False, True])
def test_where_dest_forgets_it_a_hello_that_is_repeated_at_once_is_dests_to_answer(*, over: bool) -> None:
    world = World(limits=Limits(64, 64, 180.0, remembers_hello=False))
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    handshake.leave()
    if over:
        world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    seen, world.replayed = len(handshake.datagrams), True
    world.come(hello(b"client"))
    assert world.to_dest()[-1] == hello(b"client")
    assert len(handshake.datagrams) == seen and not handshake.abandoned


def test_a_handshake_that_becomes_no_session_is_known_for_a_while() -> None:
    world = World(limits=Limits(64, 64, 180.0))
    world.come(hello(b"client"))
    world.handshakes[0].leave()
    world.handshakes[0].abandon()
    other = ("192.0.2.77", 7)
    world.come(hello(b"client"), other)
    assert not world.to_dest(other)
    world.wait(31)
    world.replayed = True
    world.come(hello(b"client"), other)
    assert world.to_dest(other) == [hello(b"client")]


def test_how_many_hellos_are_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_books, "MOST_HELLOS", 2)
    known = flow_books.AnsweredHellos(lambda cids: False)
    for number in range(3):
        handshake = FakeHandshake(World(), [], VISITOR)
        handshake.hello_cid = bytes([number]) * 8
        known.add(handshake, 0.0)
    initials = [b"\xc3\x00\x00\x00\x01\x08" + bytes([number]) * 8 for number in range(3)]
    assert [known.has(each, 1.0) for each in initials] == [False, True, True]


def test_the_same_address_may_begin_again() -> None:
    again, third = b"\xc3\x00\x00\x00\x01\x08another!\x00", b"\xc3\x00\x00\x00\x01\x08thethird\x00"
    world = World()
    world.come(hello(b"client"))
    world.come((again + b"half").ljust(1250, b"\x00"))
    world.come((again + b"client").ljust(1250, b"\x00"))
    assert len(world.handshakes) == 2
    assert world.handshakes[0].abandoned
    assert len(world.handshakes[1].datagrams) == 2
    assert len(world.to_dest()) == 3, "Dest sees all of it"
    world.handshakes[1].cids = [b"another!"]
    world.handshakes[1].leave()
    world.come((third + b"stranger").ljust(1250, b"\x00"))
    assert not world.handshakes[1].abandoned, "somebody who shares the address does no harm"
    world.come((third + b"client").ljust(1250, b"\x00"))
    assert len(world.handshakes) == 3
    world.table.handshake_over(VISITOR, world.handshakes[2], world.now)
    world.come((again + b"client").ljust(1250, b"\x00"))
    assert len(world.handshakes) == 4
    assert world.open == 1


def test_idle_flows_end_and_busy_ones_do_not() -> None:
    world = World()
    other = ("198.51.100.8", 1)
    world.come(b"garbage")
    world.come(b"garbage", other)
    for _ in range(10):
        world.wait(10)
        world.come(b"more", other)
    assert world.relays[VISITOR][0].closed
    assert not world.relays[other][0].closed
    for _ in range(10):
        world.wait(10)
        world.answer(b"reply", other)
    assert not world.relays[other][0].closed
    world.wait(31)
    assert world.open == 0
    assert world.table.timer() is None


def test_the_longest_idle_makes_room() -> None:
    world = World()
    sources = [(f"198.51.{number}.7", 1) for number in range(100)]
    for source in sources:
        world.come(b"garbage", source)
        world.now += 0.01
        world.come(b"still here", sources[0])
    assert world.open == world.table.relayed == 64
    assert not world.relays[sources[0]][0].closed
    assert world.relays[sources[1]][0].closed
    assert not world.relays[sources[99]][0].closed


def test_while_half_of_the_room_is_taken_a_network_makes_room_in_its_own_place() -> None:
    world = World()
    world.come(b"garbage", ("203.0.113.1", 1))
    for port in range(100):
        world.come(b"garbage", ("198.51.100.1", 1 + port))
        world.now += 0.02
    assert world.table.relayed == 32, "until then it has what it wants"
    assert not world.relays["203.0.113.1", 1][0].closed
    assert not world.relays["198.51.100.1", 100][0].closed
    assert world.relays["198.51.100.1", 1][0].closed


def test_newcomers_are_bounded_by_network_and_in_all() -> None:
    world = World(limits=Limits(100_000, 100_000, 30.0))
    for port in range(3000):
        world.come(b"garbage", ("198.51.100.1", 1 + port))
    assert world.table.relayed < flows.OTHER_CAPACITY * 2.1, "it takes most, and waits"
    for number in range(6000):
        world.come(b"garbage", (f"10.{number >> 8}.{number & 255}.1", 1))
    assert world.table.relayed <= flows.OTHER_CAPACITY * 2 * 2.1, "in the two seconds that are remembered"
    world.come(hello(b"client"), ("192.0.2.55", 5))
    assert world.handshakes, "a flood of garbage does not keep a client out"
    world.now += 5
    world.come(b"garbage", ("198.51.100.1", 4000))
    assert ("198.51.100.1", 4000) in world.relays


def test_a_flood_of_what_only_looks_like_initials_opens_no_connections_to_dest() -> None:
    """The first of it are Dest's to ignore, as ever; a flood of it is ours."""
    world = World(limits=Limits(100_000, 100_000, 30.0))
    for number in range(500):
        world.come(hello(b"stranger, garbage"), ("198.51.100.1", 1 + number))
    assert 90 <= len(world.relays) <= 110
    assert world.table.relayed == 100, "the first of it"
    world.come(hello(b"client"), ("198.51.100.1", 5000))
    assert world.handshakes, "and whoever has the same address gets in"


def test_what_only_looks_like_initials_goes_to_a_dest_that_answers_it_with_a_retry() -> None:
    """As many as Initials would, and within the same bounds."""
    worlds = [World(limits=Limits(100_000, 100_000, 30.0, retries=True)) for _ in range(2)]
    for world, text in zip(worlds, (b"stranger, garbage", b"stranger"), strict=True):
        for number in range(3000):
            world.come(hello(text), (f"198.51.{number % 100}.1", 1 + number))
    garbage, initials = (len(world.relays) for world in worlds)
    assert 300 <= garbage == initials < 3000


def test_initials_of_another_connection_in_a_clients_name_are_looked_at_as_newcomers_are() -> None:
    world = World()
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    for leaves in (False, True):
        looks, sent = world.inspected, len(world.to_dest())
        for _ in range(6000):
            world.now += 1 / 3000
            world.come(OTHER)
        assert world.inspected - looks < flows.HELLO_CAPACITY * 2.1, "in two seconds"
        assert len(world.to_dest()) == sent + 6000, "Dest has them all"
        if not leaves:
            handshake.leave()
    assert handshake.datagrams == [hello(b"client")]
    world.now += 10
    world.come(OTHER.replace(b"stranger", b"client  "))
    assert len(world.handshakes) == 2, "and who begins again is seen again"


def test_undecided_flows_hold_a_bounded_amount() -> None:
    world = World(limits=Limits(100_000, 100_000, 30.0))
    world.table._hellos.capacity = 1e6
    for number in range(3000):
        world.come(hello(b"half"), (f"10.{number >> 8}.{number & 255}.1", 1))
        books = world.table._books
        assert books._undecided_bytes <= flow_books.MAX_UNDECIDED_BYTES
        assert len(books.undecided) <= flow_books.MAX_UNDECIDED
    world.wait(0.01)
    assert world.open == 3000, "all of them are Dest's to answer"
    world.wait(31)
    assert books._undecided_bytes == 0
    assert not books.undecided


def test_without_a_way_to_dest_nothing_is_kept() -> None:
    world = World(dest=False)
    world.come(b"garbage")
    world.come(hello(b"half"))
    world.wait(1)
    world.come(hello(b"stranger"))
    assert world.table.relayed == world.table.pending == 0
    assert world.table.dropped == 3
    world.dest = True
    world.come(b"garbage")
    assert world.to_dest() == [b"garbage"]


def test_handshakes_at_once_are_bounded() -> None:
    world = World(limits=Limits(100_000, 100_000, 30.0))
    for number in range(flow_books.MAX_OURS + 10):
        world.come(hello(b"client"), (f"10.0.{number}.1", 1))
    assert world.table.pending == flow_books.MAX_OURS
    assert [one.abandoned for one in world.handshakes].index(False) == 10


def test_closing_lets_go_of_everything() -> None:
    world = World()
    for number in range(20):
        world.come(b"garbage", (f"198.51.{number}.7", 1))
    world.perform(world.table.close())
    assert world.open == 0


@pytest.mark.parametrize(
    ("data", "cid"),
    [
        (retry(b""), b""),
        (retry(b"abcd"), b"abcd"),
        (b"\xf0\x00\x00\x00\x01\x04wxyz\x02ab" + bytes(30), b"ab"),
        (b"\xf0\x00\x00\x00\x01\xff" + bytes(30), None),
        (b"\xf0\x00\x00\x00\x01\x00\x15" + bytes(40), None),
        (b"\xe0\x00\x00\x00\x01\x00\x00" + bytes(40), None),
        (b"\xf0\x00\x00\x00\x02\x00\x00" + bytes(40), None),
        (b"\xf0", None),
        (b"", None),
    ],
)
def test_a_retry_is_known_by_its_header(data: bytes, cid: bytes | None) -> None:
    assert retry_source_cid(data) == cid


@given(st.binary(max_size=1600))
def test_any_bytes_may_be_looked_at(data: bytes) -> None:
    assert may_begin_hello(data) in (True, False)
    cid = retry_source_cid(data)
    assert cid is None or (len(cid) <= 20 and cid in data)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.sampled_from(
                [
                    b"garbage",
                    b"half",
                    b"client",
                    b"stranger",
                    b"",
                    b"answer",
                    b"retry",
                    b"over",
                    b"leave",
                    b"wait",
                    b"unfollowed",
                ]
            ),
        ),
        max_size=120,
    )
)
@example([(0, b"garbage"), (1, b"client"), *((number, b"garbage") for number in range(2, 7)), (1, b"unfollowed")])
def test_whatever_comes_the_books_balance(happenings: list[tuple[int, bytes]]) -> None:
    world = World(limits=Limits(6, 3, 1.0))
    for number, what in happenings:
        source = (f"198.51.{number % 4}.7", number)
        match what:
            case b"answer" | b"retry" | b"unfollowed":
                if source in world.flows:
                    world.answer(retry(b"abcd") if what == b"retry" else what, source)
            case b"over":
                for one in world.handshakes:
                    world.table.handshake_over(one.source, one, world.now)
            case b"leave":
                for one in world.handshakes:
                    one.leave()
            case b"wait":
                world.wait(0.3)
            case b"garbage" | b"":
                world.come(what, source)
            case _:
                world.come(hello(what), source)
        books = world.table._books
        assert len(books.visitors) <= 6
        assert all(0 < len(flows_of) <= 4 for flows_of in books._networks.values())
        assert sum(map(len, books._networks.values())) == len(books.visitors)
        kept = [*(d for f in books.undecided.values() for d in f.held)]
        kept += [d for f in books.undecided.values() for d, _ in f.unread]
        assert books._undecided_bytes == sum(map(len, kept))
        assert set(books.undecided) <= set(books.visitors)
        assert not set(books.visitors) & set(books.clients)
        assert not books.unread, "everything has been looked at"
        relays = sum(f.relay is not None for f in (*books.visitors.values(), *books.clients.values()))
        assert world.open == relays
    world.wait(60)
    for one in world.handshakes:
        world.table.handshake_over(one.source, one, world.now)
    world.wait(60)
    assert world.open == 0
    assert not world.table._books.visitors
    assert not world.table._books.clients


def at_random(seed: int) -> World:
    """A world in which everything that can happen does, again and again."""
    chance, again = random.Random(seed), b"\xc3\x00\x00\x00\x01\x08another!\x00"
    world = World(limits=Limits(6, 3, 1.0))
    texts = [b"half", b"half", b"client", b"stranger"]
    datagrams = [*map(hello, texts), *((again + text).ljust(1250, b"\x00") for text in texts)]
    datagrams += [b"garbage", b"\x41late", b"\x41" + OUR_CID + bytes(30)]
    datagrams += [b"\x41dest, mine", b"\xc3\x6b\x33\x43\xcf\x08unknown!\x00", another(b"prober")]
    replies = [b"answer", b"unfollowed", retry(b"abcd"), b"\x41short", b"\x41prober, short"]
    replies += [acknowledgement(bytes(8), b"dest", number) for number in (0, 1)]
    for _ in range(6000):
        source = (f"198.51.{chance.randrange(3)}.7", chance.randrange(3))
        match chance.randrange(20):
            case 0 | 1 | 2 if source in world.flows:
                world.answer(chance.choice(replies), source)
            case 3:
                world.wait(chance.choice([0.002, 0.3, 3.0, 31.0]))
            case 4:
                world.dest, world.replayed = chance.random() < 0.7, chance.random() < 0.3
                world.imitated = chance.random() < 0.2
                world.crowded, world.slow = chance.random() < 0.2, chance.random() < 0.2
            case 12:
                world.store_answers()
            case 5 if world.handshakes:
                one = chance.choice(world.handshakes[-6:])
                world.perform(world.table.handshake_over(one.source, one, world.now))
            case 6 if chance.random() < 0.3:
                world.perform(world.table.abandon(source))
                if source not in world.table._books.visitors:
                    world.handshakes.append(FakeHandshake(world, [], source))
                    world.perform(world.table.handed_over(source, world.handshakes[-1], world.now))
            case 7 if world.handshakes:
                chance.choice(world.handshakes[-6:]).leave()
            case 8:
                world.perform(world.table.from_front(source, b"\x41front", world.now))
                world.perform(world.table.dest_at_front(source, b"at the front", 1, world.now))
            case 9 | 10 | 11:
                world.arrive(chance.choice(datagrams), source, ecn=chance.randrange(4))
            case _:
                world.come(chance.choice(datagrams), source, ecn=chance.randrange(4))
    return world


def test_every_row_of_the_table_is_reached_and_the_short_way_is_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MAX_UNDECIDED", "MAX_OURS"):
        monkeypatch.setattr(flow_books, bound, 3)
    short = [at_random(seed) for seed in range(3)]
    reached: set[tuple[FlowState, FlowEvent]] = set()

    class Rows(dict[tuple[FlowState, FlowEvent], FlowRule]):
        def __getitem__(self, key: tuple[FlowState, FlowEvent]) -> FlowRule:
            reached.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(flows, "RULES", Rows(RULES))
    for column in ("_AT_DATAGRAM", "_AT_REPLY"):
        monkeypatch.setattr(flows, column, dict.fromkeys(FlowState))  # everything goes the long way
    for world, other in zip(short, (at_random(seed) for seed in range(3)), strict=True):
        assert world.replies == other.replies
        assert world.resets == other.resets
        assert [(one.datagrams, one.of_dest) for one in world.handshakes] == [
            (one.datagrams, one.of_dest) for one in other.handshakes
        ]
        assert [[relay.sent for relay in relays] for relays in world.relays.values()] == [
            [relay.sent for relay in relays] for relays in other.relays.values()
        ]
    assert reached == set(RULES)
