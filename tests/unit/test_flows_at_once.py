"""What one look finds, and what follows from it before the next: no combination of events is without a row."""

from __future__ import annotations

import pytest

from qre.workers.handshake.port import flow_books
from qre.workers.handshake.port.flow_parts import FlowState, Limits
from tests.unit.test_handshake_flows import VISITOR, World, at_random, hello

MANY = Limits(65_536, 4096, 180.0)
LAST = ("203.0.113.1", 60_000)


def full(world: World) -> World:
    """As many undecided flows as there may be; a client's is the oldest."""
    world.come(hello(b"half of client"))
    for number in range(flow_books.MAX_UNDECIDED - 1):
        world.come(hello(b"half"), (f"203.0.113.{number % 250}", 1000 + number))
    return world


def test_a_client_that_is_found_while_others_make_room_is_a_client() -> None:
    world = full(World(limits=MANY))
    world.arrive(hello(b"client"))
    world.arrive(hello(b"half"), LAST)
    world.look()
    assert world.flows[VISITOR].state is FlowState.SHADOW and world.handshakes[0].began


def test_a_replay_that_is_found_then_is_refused_and_keeps_nobody_out() -> None:
    world = full(World(limits=MANY, replayed=True))
    another = ("192.0.2.77", 5000)
    world.arrive(hello(b"client"))
    world.arrive(hello(b"half"), LAST)
    world.arrive(hello(b"stranger"), another)
    world.look()
    assert world.flows[VISITOR].state is world.flows[another].state is FlowState.RELAY


def test_a_client_that_begins_again_may_take_the_place_of_its_own_handshake() -> None:
    """One identity has a share of the handshakes, and its oldest gives way."""
    again = b"\xc3\x00\x00\x00\x01\x08another!\x00client".ljust(1250, b"\x00")
    world = World()
    world.come(hello(b"client"))
    world.crowded = True
    world.come(again)
    assert world.handshakes[0].abandoned and world.handshakes[1].began
    assert world.flows[VISITOR].state is FlowState.SHADOW
    world.come(b"\x41more")
    assert world.handshakes[1].datagrams[-1] == b"\x41more"


def test_two_clients_of_one_look_may_need_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_books, "MAX_OURS", 1)
    again = b"\xc3\x00\x00\x00\x01\x08another!\x00client".ljust(1250, b"\x00")
    world = World()
    world.come(hello(b"client"))
    world.arrive(hello(b"client"), LAST)
    world.arrive(again)
    world.look()
    assert world.handshakes[0].abandoned and world.table.pending == 1


def test_what_is_fed_to_a_handshake_is_not_held_any_more() -> None:
    """Of what undecided flows hold nothing is left when they are decided, in whichever way."""
    for replayed in (False, True):
        world = World(replayed=replayed)
        world.arrive(hello(b"client"))
        world.arrive(hello(b"client, again"))
        world.look()
        books = world.table._books
        assert (books._undecided_bytes, books.unread, world.flows[VISITOR].unread) == (0, {}, [])


@pytest.mark.parametrize("seed", range(3, 9))
def test_whatever_happens_at_once_has_a_row(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MAX_UNDECIDED", "MAX_OURS"):
        monkeypatch.setattr(flow_books, bound, 2)
    world = at_random(seed)
    books = world.table._books
    kept = [d for f in books.undecided.values() for d in (*f.held, *(data for data, _ in f.unread))]
    assert books._undecided_bytes == sum(map(len, kept))
    world.perform(world.table.close())
    assert (world.open, books._undecided_bytes) == (0, 0)
