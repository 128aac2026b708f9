"""Twins, two machines with one profile, are told apart from a client that has moved, or starts again and again."""

from __future__ import annotations

from qre.workers.handshake.twins import Twins

ONE, TWO = b"\1" * 8, b"\2" * 8
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def test_one_that_has_moved_is_no_twin() -> None:
    twins = Twins()
    assert not twins.replaced(ONE, A, B, 0.0)
    assert not twins.turn_away(ONE, B, A, 1.0)
    assert not twins.replaced(ONE, B, A, 3600.0), "and back, an hour later"
    assert twins.known(3600.0) == []


def test_two_that_replace_each_other_are_twins_at_the_third_time() -> None:
    twins = Twins()
    assert [twins.replaced(ONE, *places, at) for places, at in (((A, B), 0.0), ((B, A), 0.7), ((A, B), 2.3))] == [
        False,
        False,
        True,
    ]
    assert (twins.known(2.3), twins.addresses(ONE)) == ([ONE], (A, B))
    assert not twins.replaced(TWO, A, B, 2.3), "of others nothing is known"


def test_the_one_that_is_connected_stays_and_may_come_again() -> None:
    twins = Twins()
    for at in range(3):
        twins.replaced(ONE, A, B, at)
    assert twins.turn_away(ONE, B, A, 10.0)
    assert twins.turn_away(ONE, B, C, 10.0)
    assert not twins.turn_away(ONE, B, B, 10.0)
    assert twins.turn_away(ONE, B, A, 290.0), "each knock is remembered"
    assert twins.known(580.0) == [ONE]
    assert not twins.turn_away(ONE, B, A, 600.0), "after a long silence it is one that has moved"
    assert twins.known(600.0) == []


def test_one_address_needs_more_of_them_and_nobody_of_it_is_let_in() -> None:
    twins = Twins()
    assert [twins.replaced(ONE, A, A, 2.0 * at) for at in range(5)] == [False] * 4 + [True]
    assert twins.turn_away(ONE, A, A, 10.0)


def test_rare_replacements_are_of_one_machine() -> None:
    twins = Twins()
    assert not any(twins.replaced(ONE, A, B, 13.0 * at) for at in range(100))


def test_removed_short_ids_are_forgotten() -> None:
    twins = Twins()
    for at in range(3):
        twins.replaced(ONE, A, B, at)
    twins.keep(frozenset({TWO}))
    assert twins.known(3.0) == []
