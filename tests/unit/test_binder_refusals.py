"""A ticket of ours with a false binder gets what a quic-go site says to one of its own, by whomever it comes."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.errors import UntrustedInputError
from qre.quic.server.inspector import Authenticated, Forged, HelloInspector, Undecided, Verdict
from qre.quic.server.server_handshake import ShownByDest
from qre.quic.shadow.habits import habits_of
from qre.quic.tls.client_hello import parse_client_hello_untrusted
from qre.wire.packet import long_header_destination_cid, long_header_source_cid, parse_header_untrusted
from qre.wire.protection import Protection, initial_secrets
from qre.workers.handshake.port.flow_effects import Copied
from qre.workers.handshake.port.flow_parts import Flow, FlowState, ForgedHello
from qre.workers.handshake.recognition.accepted import LIFETIME
from qre.workers.handshake.recognition.binder_refusals import CLOSING, Refusal
from qre.workers.handshake.recognition.copies import MOST_COPIES
from tests.support.false_binder import with_false_binder
from tests.support.pair import CLIENT, NAME, SHORT_ID
from tests.unit.test_copies import Genuine, copied
from tests.unit.test_handshake_flows import VISITOR, FakeHandshake, World, hello
from tests.unit.test_resumption import known

#: CONNECTION_CLOSE with 0x133, for no frame, without a reason: what a Caddy 2.11 says.
CLOSE = bytes.fromhex("1c41330000")


def flight() -> list[bytes]:
    cid = long_header_destination_cid(copied()[1][0])
    assert cid is not None
    return with_false_binder(copied()[1], cid)


def verdict(datagrams: list[bytes], key: X25519PrivateKey | None = None, tickets: Any = None) -> Verdict:
    inspector = HelloInspector(
        server_name=NAME,
        private_key=key or known()[0],
        short_ids=[SHORT_ID],
        max_time_diff_ms=0,
        tickets=tickets or known()[1],
    )
    return [inspector.datagram_received(data, 0) for data in datagrams][-1]


class NoTickets:
    """Keys that have sealed nothing."""

    def open_untrusted(self, identity: bytes) -> Any:
        raise UntrustedInputError("ticket", "not ours")


def test_another_binder_is_false_whatever_the_authenticator_says() -> None:
    assert isinstance(verdict(copied()[1][:2]), Authenticated)
    assert isinstance(verdict(flight()), Forged)
    strangers = X25519PrivateKey.generate()  # its key agreement is not the one that made the authenticator
    assert isinstance(verdict(copied()[1][:2], strangers), Forged)
    assert isinstance(verdict(flight(), strangers), Forged)


def test_a_ticket_that_is_not_ours_is_a_strangers() -> None:
    assert verdict(flight(), X25519PrivateKey.generate(), NoTickets()) is Undecided.STRANGER
    assert isinstance(verdict(flight(), None, NoTickets()), Authenticated), "acceptance looks at its binder again"


def test_the_first_of_several_identities_counts_if_there_are_as_many_binders() -> None:
    message = copied()[0].client_hello
    one = parse_client_hello_untrusted(message).offered
    assert one is not None and one.covered == message[:-35] and one.binder == message[-32:]
    identity = len(one.identity).to_bytes(2, "big") + one.identity + bytes(4)
    other = b"\x00\x01x" + bytes(4)
    for identities, binders, found in (
        ((identity, other), (bytes(32), bytes(48)), one.identity),
        ((other, identity), (bytes(32), bytes(32)), b"x"),
        ((identity,), (bytes(48),), one.identity),
        ((identity, other), (bytes(32),), None),
        ((identity,), (bytes(32), bytes(32)), None),
    ):
        offered = parse_client_hello_untrusted(offering(message, one.identity, identities, binders)).offered
        assert (None if offered is None else offered.identity) == found


def offering(message: bytes, identity: bytes, identities: tuple[bytes, ...], binders: tuple[bytes, ...]) -> bytes:
    """``message`` with another pre_shared_key."""
    begin = len(message) - 35 - 2 - 2 - len(identity) - 4 - 4
    assert message[begin : begin + 2] == b"\x00\x29"
    listed, bound = b"".join(identities), b"".join(bytes([len(each)]) + each for each in binders)
    body = len(listed).to_bytes(2, "big") + listed + len(bound).to_bytes(2, "big") + bound
    made = bytearray(message[:begin] + b"\x00\x29" + len(body).to_bytes(2, "big") + body)
    grown = len(made) - len(message)
    made[1:4] = (len(made) - 4).to_bytes(3, "big")
    at = 4 + 2 + 32
    at += 1 + made[at]
    at += 2 + int.from_bytes(made[at : at + 2], "big")
    at += 1 + made[at]
    made[at : at + 2] = (int.from_bytes(made[at : at + 2], "big") + grown).to_bytes(2, "big")
    return bytes(made)


def refused(world: Genuine, now: float = 100.0, shown: ShownByDest | None = None) -> Refusal | None:
    found = verdict(flight())
    assert isinstance(found, Forged)
    made = world.copies.answer(ForgedHello(found, flight(), CLIENT, now, shown))
    assert made is None or isinstance(made, Refusal)
    return made


def opened(data: bytes) -> tuple[bytes, int, bytes]:
    """Clear header, number and payload of an Initial to the visitor."""
    cid = long_header_destination_cid(flight()[0])
    assert cid is not None
    header = parse_header_untrusted(data, short_cid_length=0)
    assert header.end == len(data)
    return Protection(initial_secrets(cid)[1]).unprotect_untrusted(data, header.number_offset, 0)


def test_the_close_stands_for_dests_server_hello_and_nothing_else_of_dest_is_shown() -> None:
    world = Genuine()
    refusal = refused(world)
    assert refusal is not None
    refusal.begin(100.0)
    for data in copied()[2]:
        refusal.dest_spoke(data, 0, 100.01)
    *acknowledged, close = world.said
    assert acknowledged == copied()[2][: len(acknowledged)]
    of_dest = copied()[2][len(acknowledged)]
    header, number, payload = opened(close)
    assert payload == CLOSE
    assert len(header) + len(payload) + 16 == len(close) == 37 - 4 + len(long_header_source_cid(of_dest) or b"")
    assert long_header_source_cid(close) == long_header_source_cid(of_dest)
    assert number == len(acknowledged) and header[0] & 3 == 1
    (farewell,) = world.farewells
    assert long_header_destination_cid(farewell) == long_header_source_cid(of_dest)


def test_the_close_is_repeated_as_from_quic_go_and_then_all_is_forgotten() -> None:
    world = Genuine()
    refusal = refused(world)
    assert refusal is not None
    for data in copied()[1]:
        refusal.datagram_received(data, 100.0)  # with the hello: Dest has it
    for data in copied()[2]:
        refusal.dest_spoke(data, 0, 100.01)
    before = len(world.said)
    times = []
    for n in range(1, 10):
        refusal.datagram_received(flight()[0], 100.1)
        times.append((n, len(world.said) - before))
    assert times == [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 3), (7, 3), (8, 4), (9, 4)]
    assert len(set(world.said[before - 1 :])) == 1
    assert world.copies.timer() == 100.01 + CLOSING
    world.copies.handle_timer(100.01 + CLOSING)
    assert (world.ended, world.copies.timer()) == (1, None)
    refusal.abandon()
    assert world.ended == 1


def test_without_an_answer_of_dest_there_is_none() -> None:
    world = Genuine()
    assert refused(world) is not None
    assert world.copies.timer() == 100.0 + LIFETIME
    world.copies.handle_timer(100.0 + LIFETIME)
    assert (world.said, world.ended) == ([], 1)


def test_where_dest_refuses_the_hello_itself_it_is_shown() -> None:
    world = Genuine()
    first, second = refused(world), refused(world)
    assert first is not None and second is not None
    for data in copied()[2]:
        first.dest_spoke(data, 0, 100.01)
    (_, close), first_said = (world.said[0], world.said[-1]), list(world.said)
    dests_own = close  # what says CLOSE is Dest
    world.not_followed = lambda one: world.farewells.append(b"shown")  # type: ignore[method-assign]
    second.dest_spoke(dests_own, 0, 100.01)
    assert world.said == [*first_said, dests_own] and world.farewells[-1] == b"shown"


def test_refusals_count_as_copies_and_what_is_more_is_dests() -> None:
    world = Genuine()
    assert world.comes() is not None
    made = [refused(world) for _ in range(MOST_COPIES + 2)]
    assert made.count(None) == 3
    assert world.comes() is None
    assert refused(world, 100.0 + LIFETIME) is not None


def test_where_nobody_knows_what_a_site_would_say_dest_answers() -> None:
    assert refused(Genuine(imitated=True)) is None
    for changes in ({"returns": ()}, {"transport_parameters": (1, 3, 4, 5)}, {"transport_parameters": (5, 4, 3)}):
        world = Genuine()
        world.dest = msgspec.structs.replace(world.dest, **changes)
        assert refused(world) is None
    world.dest = None  # type: ignore[assignment]
    assert refused(world) is None
    assert habits_of(()).false_binder == 0x133


# --- the flow ---


class Refusing(World):
    """Every hello with «client» is forged."""

    def accept(self, flow: Flow, hello: Any) -> Any:
        assert isinstance(hello, ForgedHello) or self.live
        made = super().accept(flow, hello)
        return Copied(made) if isinstance(made, FakeHandshake) and not self.live else made


def forged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Forged(os.urandom(8))
    monkeypatch.setattr(
        "tests.unit.test_handshake_flows.FakeInspector.datagram_received",
        lambda inspector, data, unix_ms: found if b"forged" in data else Undecided.STRANGER,
    )


def test_a_refused_flow_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Refusing()
    forged(world, monkeypatch)
    world.come(hello(b"forged"))
    world.answer(b"of dest")
    (handshake,) = world.handshakes
    assert handshake.of_dest == [(b"of dest", 0)] and world.replies == []
    handshake.leave()
    assert world.flows[VISITOR].state is FlowState.LEFT and world.to_dest()[-1] == b"farewell"
    assert not world.table._books.answered.has(hello(b"forged"), world.now)
    world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    assert (world.flows[VISITOR].state, world.open, world.table.pending) == (FlowState.NONE, 0, 0)


def test_at_a_clients_address_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Refusing(live=True)
    world.come(hello(b"client"))
    forged(world, monkeypatch)
    world.come(hello(b"forged"))
    assert len(world.handshakes) == 1 and not world.handshakes[0].abandoned
    assert world.flows[VISITOR].state is FlowState.SHADOW
