"""Connections at a client's address that are not the client's: a prober in its name, or who shares its address."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import cast

import pytest
from aioquic.quic.packet import encode_quic_retry

from qre.quic.server.inspector import Authenticated
from qre.quic.server.server_handshake import ServerHandshake
from qre.reality.authenticator import SharedSecrets
from qre.wire.packet import PacketType, build_long_header
from qre.workers.handshake.acceptance import Acceptance
from qre.workers.handshake.port.flow_parts import FlowState, Hello, Limits
from qre.workers.handshake.recognition.accepted import Accepted
from tests.unit.test_handshake_flows import VISITOR, FakeHandshake, World, another, hello

LIMITS = Limits(64, 64, 180.0)
SHORT = b"\x41prober, and the rest"
UNKNOWN_VERSION = b"\xc3\x1a\x2a\x3a\x4a\x04dest\0" + bytes(1190)


def met(state: FlowState) -> tuple[World, FakeHandshake]:
    """A client whose flow is in this state."""
    world = World(limits=LIMITS)
    world.come(hello(b"client"))
    (handshake,) = world.handshakes
    if state is not FlowState.SHADOW:
        handshake.leave()
    if state is FlowState.OVER:
        world.perform(world.table.handshake_over(VISITOR, handshake, world.now))
    assert world.flows[VISITOR].state is state
    return world, handshake


IN_EACH = pytest.mark.parametrize("state", [FlowState.SHADOW, FlowState.LEFT, FlowState.OVER], ids=str)


@IN_EACH
def test_dests_short_headers_for_another_connection_go_back_as_they_are(state: FlowState) -> None:
    world, handshake = met(state)
    world.come(UNKNOWN_VERSION)
    world.come(another(b"somebody"))
    world.come(another(b"prober"))
    world.replies.clear()
    world.answer(SHORT, ecn=2)
    assert world.replies == [(VISITOR, SHORT, 2)] and not handshake.of_dest
    world.answer(b"\x41client, perhaps")
    assert len(world.replies) == 1


def test_how_many_are_known_is_bounded() -> None:
    world, _ = met(FlowState.SHADOW)
    for number in range(1000):
        world.come(another(b"prob%04d" % number))
    assert world.flows[VISITOR].others == tuple(b"prob%04d" % number for number in range(992, 1000))


@IN_EACH
def test_an_unknown_version_is_not_the_clients_whatever_its_connection_id_is(state: FlowState) -> None:
    world, _ = met(state)
    world.come(UNKNOWN_VERSION)
    assert world.to_dest()[-1] == UNKNOWN_VERSION


def test_whoever_uses_the_connection_to_dest_keeps_it_when_the_clients_handshake_is_long_over() -> None:
    world, _ = met(FlowState.OVER)
    for number in range(8):
        world.come(UNKNOWN_VERSION + bytes([number]))
        world.wait(5)
    ((relay,),) = world.relays.values()
    assert not relay.closed and len(relay.sent) == 10
    assert world.flows[VISITOR].state is FlowState.RELAY and world.table.relayed == 1
    world.answer(b"\x80\x00\x00\x00\x00versions")
    assert world.replies[-1][1] == b"\x80\x00\x00\x00\x00versions"
    world.wait(175)
    assert not relay.closed, "idle is counted from its last use"
    world.wait(15)
    assert relay.closed


def test_what_only_the_client_has_used_ends_with_its_handshake() -> None:
    world, _ = met(FlowState.OVER)
    world.wait(31)
    assert world.open == 0 and world.table.strangers == 0


def test_a_possible_hello_cuts_nobody_elses_connection() -> None:
    world, _ = met(FlowState.OVER)
    world.come(UNKNOWN_VERSION)
    world.come(another(b"prober"))
    ((relay,),) = world.relays.values()
    assert not relay.closed and relay.sent[-1][0] == another(b"prober")
    world.come(b"\xc3\x00\x00\x00\x01\x08another!\x00client".ljust(1250, b"\x00"))
    assert world.flows[VISITOR].state is FlowState.SHADOW and not relay.closed, "the client begins again"
    assert world.handshakes[1].began


def test_others_keep_their_connection_when_clients_need_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qre.workers.handshake.port.flow_books.MAX_OURS", 1)
    world, _ = met(FlowState.OVER)
    world.come(UNKNOWN_VERSION)
    world.come((b"\xc3\x00\x00\x00\x01\x08another!\x00client").ljust(1250, b"\x00"), ("192.0.2.5", 5))
    assert world.flows[VISITOR].state is FlowState.RELAY and not world.relays[VISITOR][0].closed


def test_a_handshake_follows_dest_as_long_as_dest_or_the_client_speaks() -> None:
    """Dest repeats its flight to a silent client for as long as it likes."""
    world, handshake = met(FlowState.SHADOW)
    late = build_long_header(PacketType.HANDSHAKE, b"", b"dest", number=b"\0", length=17) + bytes(16)
    for _ in range(6):
        world.wait(60)
        world.answer(late)
    assert [data for data, _ in handshake.of_dest] == [late] * 6
    world.wait(179)
    assert not handshake.abandoned
    world.wait(2)
    assert handshake.abandoned and world.open == 0


def test_what_follows_server_hello_is_made_ahead_behind_a_retry_too() -> None:
    done: list[str] = []
    inner = SimpleNamespace(
        datagram_received=lambda *_: done.append("read"), prepare=lambda: done.append("made"), following=True
    )
    acceptance = SimpleNamespace(metered=lambda _: nullcontext(), progress=lambda *_: done.append("said"))
    found = Authenticated(b"", b"", SharedSecrets(b"", b"", b""), "", bytes(8), (0, 3, 0), 0, b"original")
    accepted = Accepted(
        cast(Acceptance, acceptance), cast(ServerHandshake, inner), Hello(found, [], VISITOR, 0, None), b""
    )
    accepted.datagram_received(b"the hello again", 1.0)
    assert done == ["read", "said", "made"]


@pytest.mark.parametrize("original", [b"original", b"prober's"])
def test_a_retry_begins_the_handshake_again_only_if_it_is_for_the_client(original: bytes) -> None:
    """A Retry's tag is made with the first connection ID that its receiver chose (RFC 9001 §5.8)."""
    begun: list[Authenticated] = []
    acceptance = SimpleNamespace(new_handshake=lambda found, *_: begun.append(found))
    found = Authenticated(b"", b"", SharedSecrets(b"", b"", b""), "", bytes(8), (0, 1, 0), 0, b"original")
    hello_of_it = Hello(found, [], VISITOR, 0, None)
    accepted = Accepted(cast(Acceptance, acceptance), cast(ServerHandshake, None), hello_of_it, b"")
    retry = encode_quic_retry(
        version=1,
        source_cid=b"retried!",
        destination_cid=b"",
        original_destination_cid=original,
        retry_token=b"token",
    )
    accepted.dest_retried(retry, 1.0)
    assert [each.retry_source_cid for each in begun] == ([b"retried!"] if original == b"original" else [])
