"""What answers one read of Dest's socket leaves in one go, and in order."""

from __future__ import annotations

import pytest

from qre.workers.handshake.port.flow_parts import Address
from qre.workers.handshake.port.volley import Pace, Volley

CLIENT: Address = ("192.0.2.1", 443)


class Wire:
    def __init__(self) -> None:
        self.seen: list[object] = []
        self.said: list[bytes] = []
        self.sizes: list[int] = []
        self.volley = Volley(self.send)

    def send(self, address: Address, data: bytes, ecn: int, segment: int, whole: bool) -> None:
        del whole
        self.seen.append((address, data, ecn))
        self.said.append(data)
        self.sizes.append(segment)

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


def test_what_answers_one_piece_of_dests_leaves_in_one() -> None:
    wire = Wire()
    with wire.volley.together():
        with wire.volley.in_one_piece():
            for data in (b"one", b"two", b"3"):
                wire.volley.say(CLIENT, data, 0)
        wire.volley.say(CLIENT, b"4", 0)
    assert wire.seen == [(CLIENT, b"onetwo3", 0), (CLIENT, b"4", 0)]
    assert wire.sizes == [3, 0]


@pytest.mark.parametrize(
    "second",
    [(CLIENT, b"longer", 0, 0), (CLIENT, b"two", 2, 0), (("192.0.2.2", 443), b"two", 0, 0), (CLIENT, b"two", 0, 2)],
    ids=["longer", "with another mark", "to somebody else", "several by themselves"],
)
def test_what_cannot_go_with_the_one_before_it_leaves_behind_it(second: tuple[Address, bytes, int, int]) -> None:
    wire = Wire()
    with wire.volley.together(), wire.volley.in_one_piece():
        wire.volley.say(CLIENT, b"one", 0)
        wire.volley.say(*second)
    assert wire.seen == [(CLIENT, b"one", 0), second[:3]]


def test_nothing_goes_behind_one_that_is_shorter() -> None:
    wire = Wire()
    with wire.volley.together(), wire.volley.in_one_piece():
        for data in (b"one", b"2", b"3"):
            wire.volley.say(CLIENT, data, 0)
    assert wire.said == [b"one2", b"3"]
    assert wire.sizes == [3, 0]


def test_an_empty_one_goes_with_no_other() -> None:
    wire = Wire()
    with wire.volley.together(), wire.volley.in_one_piece():
        for data in (b"", b"", b"one", b"", b"two"):
            wire.volley.say(CLIENT, data, 0)
    assert wire.said == [b"", b"", b"one", b"", b"two"]


def test_two_pieces_of_dests_stay_two() -> None:
    wire = Wire()
    with wire.volley.together():
        wire.volley.say(CLIENT, b"one", 0)
        for _ in range(2):
            with wire.volley.in_one_piece():
                wire.volley.say(CLIENT, b"two", 0)
                wire.volley.say(CLIENT, b"two", 0)
    assert wire.said == [b"one", b"twotwo", b"twotwo"]


def test_a_piece_is_what_the_kernel_cuts_by_itself_at_most() -> None:
    wire = Wire()
    with wire.volley.together(), wire.volley.in_one_piece():
        for _ in range(200):
            wire.volley.say(CLIENT, b"x" * 100, 0)
        for _ in range(100):
            wire.volley.say(CLIENT, b"y" * 1400, 0)
    lengths = [len(data) for data in wire.said]
    assert lengths == [6400, 6400, 6400, 800, 64_400, 64_400, 11_200]


def test_a_piece_ends_with_an_error() -> None:
    wire = Wire()
    with wire.volley.together():
        with pytest.raises(ZeroDivisionError), wire.volley.in_one_piece():
            wire.volley.say(CLIENT, b"one", 0)
            raise ZeroDivisionError
        wire.volley.say(CLIENT, b"one", 0)
        wire.volley.say(CLIENT, b"one", 0)
    assert wire.said == [b"one", b"one", b"one"]


FLIGHT, LATER = b"\xc0 of Dest's", b"\x40 of Dest's"


class Clock:
    """Goes on by itself, a microsecond a look."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


def answered(volley: Volley, clock: Clock, said: bytes, *, ours: bool, takes: float, waited: float = 0.0) -> float:
    """How long one answer took, until it was on the wire, since it was read; it had ``waited`` before."""
    began = clock.now
    with volley.together():
        volley.answers(said, ours=ours, age=waited)
        clock.now += takes
        volley.say(CLIENT, b"1", 0)
    return clock.now - began


def paced() -> tuple[Volley, Clock]:
    clock = Clock()
    return Volley(Wire().send, Pace(clock, max)), clock


def test_a_strangers_flight_takes_as_long_as_one_of_ours() -> None:
    volley, clock = paced()
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4) < 1.1e-4, "nothing is known yet"
    answered(volley, clock, FLIGHT, ours=True, takes=4e-4)
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4) == pytest.approx(4e-4, abs=1e-5)
    assert answered(volley, clock, FLIGHT, ours=False, takes=6e-4) < 6.1e-4
    assert answered(volley, clock, FLIGHT, ours=True, takes=1e-4) < 1.1e-4


def test_what_waited_for_the_worker_counts_from_when_it_came() -> None:
    volley, clock = paced()
    answered(volley, clock, FLIGHT, ours=True, takes=4e-4, waited=1e-3)
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4) == pytest.approx(1.4e-3, abs=1e-5)
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4, waited=1e-3) == pytest.approx(4e-4, abs=1e-5)


@pytest.mark.parametrize("said", [LATER, b""])
def test_what_is_no_flight_waits_for_nothing_and_is_waited_for_by_nothing(said: bytes) -> None:
    volley, clock = paced()
    answered(volley, clock, said, ours=True, takes=9e-4)
    answered(volley, clock, FLIGHT, ours=True, takes=4e-4)
    assert answered(volley, clock, said, ours=False, takes=1e-4) < 1.1e-4
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4) == pytest.approx(4e-4, abs=1e-5)


def test_a_wait_has_bounds() -> None:
    """One of them, and all together: a crowd of strangers costs no more than a fiftieth of the time."""
    volley, clock = paced()
    answered(volley, clock, FLIGHT, ours=True, takes=0.25)
    took = [answered(volley, clock, FLIGHT, ours=False, takes=1e-4) for _ in range(1000)]
    assert max(took) == pytest.approx(2e-3, abs=1e-5)
    assert sum(took) - 1000 * 1e-4 < 0.02 + 0.02 * sum(took) + 0.002
    clock.now += 1.0
    assert answered(volley, clock, FLIGHT, ours=False, takes=1e-4) == pytest.approx(2e-3, abs=1e-5)
