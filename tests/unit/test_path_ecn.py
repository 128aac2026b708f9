"""Whether kernel module (``kmod/ecn.c``) and user data plane find out what a path does to marks: RFC 9000 13.4.2.

Every test is one of both. In the last they are told the same, and must say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

import pytest

from qre.wire.frames import Ack, encode_ack
from qre.workers.dataplane.session.path_ecn import EcnState, PathEcn
from tests.support.kmod.codec import KernelCodec

ECT1, ECT0, CE = 1, 2, 3
TEST = 300
#: What a path makes of a codepoint; None: the packet is lost.
Path = Callable[[int], int | None]
Counts = Callable[[list[int]], tuple[int, ...]]


class Marks(Protocol):
    """One end's marks of one session: of the kernel, of the user data plane, or of both at once."""

    @property
    def state(self) -> EcnState: ...

    def again(self) -> None:
        """Another path."""

    def mark(self, number: int, count: int, now: int) -> int: ...

    def skip(self, number: int) -> None: ...

    def acknowledged(self, ack: Ack, before: int, following: int) -> None:
        """``before``: the largest number that was acknowledged until then; -1: none was."""


class KernelMarks:
    def __init__(self, codec: KernelCodec, codepoint: int) -> None:
        self._codec, self._codepoint = codec, codepoint
        self.again()

    def again(self) -> None:
        self._ask("begin", self._codepoint)

    def mark(self, number: int, count: int, now: int) -> int:
        (codepoint,) = self._ask("mark", number, count, now, TEST)
        return codepoint

    def skip(self, number: int) -> None:
        self._ask("skip", number)

    def acknowledged(self, ack: Ack, before: int, following: int) -> None:
        frame = encode_ack(ack.ranges, ack.delay, ack.ecn)
        self._ask("acked", (1 << 64) - 1 if before < 0 else before, following, frame)

    def _ask(self, call: str, *words: object) -> list[int]:
        state, *rest = self._codec.ecn(call, *words)
        self.state = EcnState(state)
        return rest


class UserMarks:
    def __init__(self, codepoint: int) -> None:
        self._marks = PathEcn(codepoint)

    @property
    def state(self) -> EcnState:
        return self._marks.state

    def again(self) -> None:
        self._marks.begin()

    def mark(self, number: int, count: int, now: int) -> int:
        return self._marks.mark(number, count, now, TEST)

    def skip(self, number: int) -> None:
        self._marks.skip(number)

    def acknowledged(self, ack: Ack, before: int, following: int) -> None:
        self._marks.acknowledged(ack, before, following)


class BothMarks:
    """The two are told the same, and say the same."""

    def __init__(self, codec: KernelCodec, codepoint: int) -> None:
        self._kernel, self._user = KernelMarks(codec, codepoint), UserMarks(codepoint)

    @property
    def state(self) -> EcnState:
        return self._user.state

    def again(self) -> None:
        self._kernel.again()
        self._user.again()
        self._check_state()

    def mark(self, number: int, count: int, now: int) -> int:
        codepoint = self._user.mark(number, count, now)
        assert self._kernel.mark(number, count, now) == codepoint
        self._check_state()
        return codepoint

    def skip(self, number: int) -> None:
        self._kernel.skip(number)
        self._user.skip(number)
        self._check_state()

    def acknowledged(self, ack: Ack, before: int, following: int) -> None:
        self._kernel.acknowledged(ack, before, following)
        self._user.acknowledged(ack, before, following)
        self._check_state()

    def _check_state(self) -> None:
        assert self._kernel.state is self._user.state


class Ends:
    """A sender and a receiver that counts. ``counts``: what it tells of them; the truth unless given."""

    def __init__(self, marks: Marks, path: Path, counts: Counts = tuple) -> None:
        self.marks, self.path, self.tell = marks, path, counts
        self.number, self.now, self.acknowledged = 65_536, 0, -1
        self.received: list[int] = []
        self.seen = [0, 0, 0]
        self.sent: list[int] = []  # codepoints

    @property
    def state(self) -> EcnState:
        return self.marks.state

    def send(self, count: int = 1, wait: int = 1) -> None:
        codepoint = self.marks.mark(self.number, count, self.now)
        self.now += wait
        for _ in range(count):
            self.sent.append(codepoint)
            arrived = self.path(codepoint)
            if arrived is not None:
                self.received.append(self.number)
                if arrived:
                    self.seen[{ECT0: 0, ECT1: 1, CE: 2}[arrived]] += 1
            self.number += 1

    def elsewhere(self) -> None:
        """A packet on another path, which is acknowledged with the others."""
        self.marks.skip(self.number)
        self.received.append(self.number)
        self.number += 1

    def acknowledge(self) -> None:
        if not self.received or self.received[-1] <= self.acknowledged:
            return
        ranges: list[tuple[int, int]] = []
        for number in self.received[::-1]:
            if ranges and ranges[-1][0] == number + 1:
                ranges[-1] = (number, ranges[-1][1])
            elif len(ranges) < 32:
                ranges.append((number, number))
            else:
                break
        ecn = self.tell(self.seen) if any(self.seen) else ()
        self.marks.acknowledged(Ack(ranges, 0, ecn), self.acknowledged, self.number)
        self.acknowledged = self.received[-1]


Made = Callable[[int], Marks]


@pytest.fixture(params=["kernel", "user"])
def made(request: pytest.FixtureRequest, codec: KernelCodec) -> Made:
    """Marks of the kernel module, and of the user data plane, for a codepoint."""
    return UserMarks if request.param == "user" else lambda codepoint: KernelMarks(codec, codepoint)


def clean(codepoint: int) -> int:
    return codepoint


def test_a_profile_without_marks_marks_nothing(made: Made) -> None:
    ends = Ends(made(0), clean)
    for _ in range(20):
        ends.send()
        ends.acknowledge()
    assert set(ends.sent) == {0} and ends.state is EcnState.OFF


@pytest.mark.parametrize("codepoint", [ECT0, ECT1])
def test_a_path_that_bears_marks_gets_them_all(made: Made, codepoint: int) -> None:
    ends = Ends(made(codepoint), clean)
    for _ in range(40):
        ends.send(3)
        ends.acknowledge()
    assert set(ends.sent) == {codepoint} and ends.state is EcnState.CAPABLE


def test_ten_packets_are_marked_and_then_none_until_the_marks_are_counted(made: Made) -> None:
    ends = Ends(made(ECT0), clean)
    for _ in range(30):
        ends.send()
    assert ends.sent == [ECT0] * 10 + [0] * 20 and ends.state is EcnState.UNKNOWN
    ends.acknowledge()
    assert ends.state is EcnState.CAPABLE
    ends.send()
    ends.acknowledge()
    assert ends.sent[-1] == ECT0 and ends.state is EcnState.CAPABLE


def test_a_test_ends_with_its_time(made: Made) -> None:
    ends = Ends(made(ECT0), clean)
    ends.send(wait=TEST)
    ends.send()
    assert ends.sent == [ECT0, 0]


def test_a_path_that_swallows_marked_packets_carries_the_others(made: Made) -> None:
    ends = Ends(made(ECT0), lambda codepoint: None if codepoint else 0)
    for _ in range(40):
        ends.send()
        ends.acknowledge()
    assert ends.sent == [ECT0] * 10 + [0] * 30 and ends.state is EcnState.UNKNOWN


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (lambda codepoint: 0, tuple),  # bleached
        (lambda codepoint: ECT1 if codepoint else 0, tuple),  # another mark
        (clean, lambda seen: (seen[0] // 2, seen[1], seen[2])),  # some are not told
        (clean, lambda seen: (0, 0, 0)),
        (clean, lambda seen: ()),
        (clean, lambda seen: (seen[2], seen[0], seen[1])),
    ],
    ids=["bleached", "remarked", "too few", "zeros", "none", "in the wrong place"],
)
def test_wrong_or_missing_counts_end_it_for_good(made: Made, path: Path, counts: Counts) -> None:
    ends = Ends(made(ECT0), path, counts=counts)
    for _ in range(20):
        ends.send(2)
        ends.acknowledge()
    assert ends.state is EcnState.FAILED
    assert ends.sent[-10:] == [0] * 10
    ends.marks.again()
    ends.send()
    assert ends.sent[-1] == ECT0, "another path begins anew"


def test_counts_that_go_back_end_it(made: Made) -> None:
    told = iter([(5, 0, 0), (4, 0, 1)])
    ends = Ends(made(ECT0), clean, counts=lambda seen: next(told))
    for _ in range(2):
        ends.send()
        ends.acknowledge()
    assert ends.state is EcnState.FAILED


def test_congestion_that_is_experienced_counts_as_a_mark(made: Made) -> None:
    dice = Random(4)
    ends = Ends(made(ECT0), lambda codepoint: CE if codepoint and dice.random() < 0.5 else codepoint)
    for _ in range(50):
        ends.send(2)
        ends.acknowledge()
    assert ends.state is EcnState.CAPABLE


def test_losses_and_acknowledgements_of_few_ranges_are_no_fault_of_the_path(made: Made) -> None:
    dice = Random(3)
    for _ in range(20):
        ends = Ends(made(ECT0), lambda codepoint: None if dice.random() < 0.3 else codepoint)
        for _ in range(200):
            ends.send(dice.randrange(1, 5))
            if dice.random() < 0.4:
                ends.acknowledge()
        assert ends.state is EcnState.CAPABLE


def test_packets_on_another_path_are_not_missed(made: Made) -> None:
    ends = Ends(made(ECT0), clean)
    for _ in range(20):
        ends.send()
        ends.elsewhere()
        ends.acknowledge()
    assert ends.state is EcnState.CAPABLE


# --- side by side ---


def any_path(dice: Random, codec: KernelCodec) -> EcnState:
    """What becomes of the test of a path that does whatever it likes."""
    lost, bleached, remarked, lied = (dice.choice([0, 0, 0, 0.02, 0.5]) for _ in range(4))

    def path(codepoint: int) -> int | None:
        if dice.random() < lost:
            return None
        if not codepoint or dice.random() < bleached:
            return 0
        return dice.choice([CE, ECT0, ECT1]) if dice.random() < remarked else codepoint

    def told(seen: list[int]) -> tuple[int, ...]:
        return tuple(max(count - (dice.random() < lied), 0) for count in seen)

    ends = Ends(BothMarks(codec, dice.choice([0, ECT0, ECT0, ECT1])), path, told)
    for _ in range(150):
        match dice.randrange(12):
            case 0:
                ends.elsewhere()
            case 1 if dice.random() < 0.05:
                ends.marks.again()
            case 2 | 3 | 4:
                ends.acknowledge()
            case _:
                ends.send(dice.randrange(1, 6), dice.choice([0, 1, 100]))
    return ends.state


def test_whatever_a_path_does_it_is_found_out_as_the_kernel_module_does(codec: KernelCodec) -> None:
    assert {any_path(Random(seed), codec) for seed in range(60)} >= {EcnState.OFF, EcnState.CAPABLE, EcnState.FAILED}
