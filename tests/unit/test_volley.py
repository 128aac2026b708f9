"""What answers one read of Dest's socket leaves in one go, and in order."""

from __future__ import annotations

import pytest

from qre.workers.handshake.port.flow_parts import Address
from qre.workers.handshake.port.volley import Volley

CLIENT: Address = ("192.0.2.1", 443)


class Wire:
    def __init__(self) -> None:
        self.seen: list[object] = []
        self.volley = Volley(lambda address, data, ecn, whole: self.seen.append((address, data, ecn)))

    def work(self) -> None:
        self.seen.append("work")


def test_what_is_said_alone_leaves_at_once() -> None:
    wire = Wire()
    wire.volley.say(CLIENT, b"1", 2)
    wire.volley.then(wire.work)
    assert wire.seen == [(CLIENT, b"1", 2), "work"]


def test_what_is_said_together_leaves_at_the_end_and_work_is_done_once_behind_it() -> None:
    wire = Wire()
    with wire.volley.together():
        for data in (b"1", b"2"):
            wire.volley.say(CLIENT, data, 0)
            wire.volley.then(wire.work)
        assert wire.seen == []
    assert wire.seen == [(CLIENT, b"1", 0), (CLIENT, b"2", 0), "work"]
    wire.volley.say(CLIENT, b"3", 0)
    assert wire.seen[-1] == (CLIENT, b"3", 0)


def test_what_has_to_leave_first_can_be_let_out_under_way() -> None:
    wire = Wire()
    with wire.volley.together():
        wire.volley.say(CLIENT, b"1", 0)
        wire.volley.let_out()
        wire.volley.say(CLIENT, b"2", 0)
        assert wire.seen == [(CLIENT, b"1", 0)]
    assert len(wire.seen) == 2


def test_an_error_under_way_loses_nothing_that_was_said() -> None:
    wire = Wire()
    with pytest.raises(ZeroDivisionError), wire.volley.together():
        wire.volley.say(CLIENT, b"1", 0)
        raise ZeroDivisionError
    assert wire.seen == [(CLIENT, b"1", 0)]
