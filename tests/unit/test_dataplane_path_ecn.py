"""Whether the user data plane finds out what a path does to marks: RFC 9000 section 13.4.2, and as qre.ko does it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from qre.wire.frames import Ack, encode_ack
from qre.workers.dataplane.session.path_ecn import EcnState, PathEcn
from tests.support.kmod.codec import KernelCodec

ECT1, ECT0, CE = 1, 2, 3
NEVER = (1 << 64) - 1
TEST = 300
#: What a path makes of a codepoint; None: the packet is lost.
Path = Callable[[int], int | None]


class Ends:
    """A sender and a receiver that counts. ``counts``: what it tells of them; the truth unless given. ``codec``: the
    kernel's is told the same, and must say the same."""

    def __init__(
        self,
        path: Path,
        codepoint: int = ECT0,
        counts: Callable[[list[int]], tuple[int, ...]] = tuple,
        codec: KernelCodec | None = None,
    ) -> None:
        self.path, self.tell, self.codec = path, counts, codec
        self.marks = PathEcn(codepoint)
        self.number, self.now, self.acknowledged = 65_536, 0, -1
        self.received: list[int] = []
        self.seen = [0, 0, 0]
        self.sent: list[int] = []  # codepoints
        self._beside("begin", codepoint)

    def _beside(self, call: str, *words: object) -> list[int]:
        if self.codec is None:
            return [0, 0]
        state, *rest = self.codec.ecn(call, *words)
        assert state == self.marks.state
        return rest

    @property
    def state(self) -> EcnState:
        return self.marks.state

    def again(self) -> None:
        """Another path."""
        self.marks.begin()
        self._beside("begin", self.marks.codepoint)

    def send(self, count: int = 1, wait: int = 1) -> None:
        codepoint = self.marks.mark(self.number, count, self.now, TEST)
        beside = self._beside("mark", self.number, count, self.now, TEST)
        assert self.codec is None or beside == [codepoint]
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
        self._beside("skip", self.number)
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
        before = NEVER if self.acknowledged < 0 else self.acknowledged
        self._beside("acked", before, self.number, encode_ack(ranges, 0, ecn))
        self.acknowledged = self.received[-1]


def clean(codepoint: int) -> int:
    return codepoint


def test_a_profile_without_marks_marks_nothing() -> None:
    ends = Ends(clean, codepoint=0)
    for _ in range(20):
        ends.send()
        ends.acknowledge()
    assert set(ends.sent) == {0} and ends.state is EcnState.OFF


@pytest.mark.parametrize("codepoint", [ECT0, ECT1])
def test_a_path_that_bears_marks_gets_them_all(codepoint: int) -> None:
    ends = Ends(clean, codepoint)
    for _ in range(40):
        ends.send(3)
        ends.acknowledge()
    assert set(ends.sent) == {codepoint} and ends.state is EcnState.CAPABLE


def test_ten_packets_are_marked_and_then_none_until_the_marks_are_counted() -> None:
    ends = Ends(clean)
    for _ in range(30):
        ends.send()
    assert ends.sent == [ECT0] * 10 + [0] * 20 and ends.state is EcnState.UNKNOWN
    ends.acknowledge()
    assert ends.state is EcnState.CAPABLE
    ends.send()
    ends.acknowledge()
    assert ends.sent[-1] == ECT0 and ends.state is EcnState.CAPABLE


def test_a_test_ends_with_its_time() -> None:
    ends = Ends(clean)
    ends.send(wait=TEST)
    ends.send()
    assert ends.sent == [ECT0, 0]


def test_a_path_that_swallows_marked_packets_carries_the_others() -> None:
    ends = Ends(lambda codepoint: None if codepoint else 0)
    for _ in range(40):
        ends.send()
        ends.acknowledge()
    assert ends.sent == [ECT0] * 10 + [0] * 30 and ends.state is EcnState.UNKNOWN


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (lambda codepoint: 0, tuple),
        (lambda codepoint: ECT1 if codepoint else 0, tuple),
        (clean, lambda seen: (seen[0] // 2, seen[1], seen[2])),
        (clean, lambda seen: ()),
        (clean, lambda seen: (seen[2], seen[0], seen[1])),
    ],
    ids=["bleached", "remarked", "too few", "none", "in the wrong place"],
)
def test_wrong_or_missing_counts_end_it_for_good(path: Path, counts: Callable[[list[int]], tuple[int, ...]]) -> None:
    ends = Ends(path, counts=counts)
    for _ in range(20):
        ends.send(2)
        ends.acknowledge()
    assert ends.state is EcnState.FAILED
    assert ends.sent[-10:] == [0] * 10
    ends.again()
    ends.send()
    assert ends.sent[-1] == ECT0, "another path begins anew"


def test_counts_that_go_back_end_it() -> None:
    told = iter([(5, 0, 0), (4, 0, 1)])
    ends = Ends(clean, counts=lambda seen: next(told))
    for _ in range(2):
        ends.send()
        ends.acknowledge()
    assert ends.state is EcnState.FAILED


def test_congestion_that_is_experienced_counts_as_a_mark() -> None:
    dice = Random(4)
    ends = Ends(lambda codepoint: CE if codepoint and dice.random() < 0.5 else codepoint)
    for _ in range(50):
        ends.send(2)
        ends.acknowledge()
    assert ends.state is EcnState.CAPABLE


def test_packets_on_another_path_are_not_missed() -> None:
    ends = Ends(clean)
    for _ in range(20):
        ends.send()
        ends.elsewhere()
        ends.acknowledge()
    assert ends.state is EcnState.CAPABLE


# --- beside the kernel's ---


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

    ends = Ends(path, dice.choice([0, ECT0, ECT0, ECT1]), told, codec)
    for _ in range(150):
        match dice.randrange(12):
            case 0:
                ends.elsewhere()
            case 1 if dice.random() < 0.05:
                ends.again()
            case 2 | 3 | 4:
                ends.acknowledge()
            case _:
                ends.send(dice.randrange(1, 6), dice.choice([0, 1, 100]))
    return ends.state


def test_whatever_a_path_does_it_is_found_out_as_the_kernel_module_does(codec: KernelCodec) -> None:
    assert {any_path(Random(seed), codec) for seed in range(60)} >= {EcnState.OFF, EcnState.CAPABLE, EcnState.FAILED}
