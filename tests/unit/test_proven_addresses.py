"""Visitors that come back: a site with a token sends more at once than three times what it was sent."""

from __future__ import annotations

import pytest

from qre.wire.packet import PacketType, build_long_header
from qre.workers.handshake.port import proven_addresses
from qre.workers.handshake.port.proven_addresses import ProvenAddresses
from tests.unit.test_handshake_flows import VISITOR, World, hello

REPLY = build_long_header(PacketType.HANDSHAKE, b"", b"dest", b"\0", 1180).ljust(1200, b"\x01")
FINISHED = build_long_header(PacketType.HANDSHAKE, b"dest", b"", b"\0", 30).ljust(60, b"\x01")
AGAIN, ELSEWHERE = (VISITOR[0], VISITOR[1] + 1), ("203.0.113.9", 5)


def passed(world: World, source: tuple[str, int]) -> int:
    """How many of ten long answers a visitor gets that has sent one datagram."""
    world.come(hello(b"stranger"), source)
    before = len(world.replies)
    for _ in range(10):
        world.answer(REPLY, source)
    return len(world.replies) - before


def test_an_address_that_has_proved_itself_gets_all_that_dest_sends_when_it_comes_back() -> None:
    world = World()
    assert passed(world, VISITOR) == 3
    world.come(FINISHED)
    assert passed(world, AGAIN) == 10
    assert passed(world, ELSEWHERE) == 3
    world.now += proven_addresses._LASTING
    assert passed(world, (VISITOR[0], 7)) == 3, "no token lasts longer"


def test_a_short_header_alone_proves_nothing_for_others() -> None:
    """It stands for a connection that moved, whose address Dest asks for; anybody can send one."""
    world = World()
    world.come(b"\x41" + bytes(60))
    world.come(b"\x41" + bytes(60))
    assert passed(world, AGAIN) == 3


def test_the_last_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proven_addresses, "_MOST", 2)
    known = ProvenAddresses()
    for ip in ("a", "b", "a", "c"):
        known.add(ip, 1.0)
    assert [known.has(ip, 1.0) for ip in "abc"] == [True, False, True]
