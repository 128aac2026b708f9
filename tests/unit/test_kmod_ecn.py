"""Whether the kernel module finds out what a path does to marks (``kmod/ecn.c``): RFC 9000 section 13.4.2."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from qre.wire.frames import encode_ack
from tests.support.kmod.codec import KernelCodec

OFF, TESTING, UNKNOWN, CAPABLE, FAILED = range(5)
ECT1, ECT0, CE = 1, 2, 3
NEVER = (1 << 64) - 1
TEST = 300
#: What a path makes of a codepoint; None: the packet is lost.
Path = Callable[[int], int | None]


class Ends:
    """A sender and a receiver that counts. ``counts``: what it tells of them; the truth unless given."""

    def __init__(
        self,
        codec: KernelCodec,
        path: Path,
        codepoint: int = ECT0,
        counts: Callable[[list[int]], tuple[int, ...]] = tuple,
    ) -> None:
        self.codec, self.path, self.tell = codec, path, counts
        self.number, self.now, self.acknowledged = 65_536, 0, NEVER
        self.received: list[int] = []
        self.seen = [0, 0, 0]
        self.sent: list[int] = []  # codepoints
        (self.state,) = codec.ecn("begin", codepoint)

    def send(self, count: int = 1, wait: int = 1) -> None:
        self.state, codepoint = self.codec.ecn("mark", self.number, count, self.now, TEST)
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
        self.codec.ecn("skip", self.number)
        self.received.append(self.number)
        self.number += 1

    def acknowledge(self) -> None:
        if not self.received or (self.acknowledged != NEVER and self.received[-1] <= self.acknowledged):
            return
        ranges: list[tuple[int, int]] = []
        for number in self.received[::-1]:
            if ranges and ranges[-1][0] == number + 1:
                ranges[-1] = (number, ranges[-1][1])
            elif len(ranges) < 32:
                ranges.append((number, number))
        ecn = self.tell(self.seen) if any(self.seen) else ()
        frame = encode_ack(ranges, 0, ecn)
        (self.state,) = self.codec.ecn("acked", self.acknowledged, self.number, frame)
        self.acknowledged = self.received[-1]


def clean(codepoint: int) -> int:
    return codepoint


def test_a_profile_without_marks_marks_nothing(codec: KernelCodec) -> None:
    ends = Ends(codec, clean, codepoint=0)
    for _ in range(20):
        ends.send()
        ends.acknowledge()
    assert set(ends.sent) == {0} and ends.state == OFF


@pytest.mark.parametrize("codepoint", [ECT0, ECT1])
def test_a_path_that_bears_marks_gets_them_all(codec: KernelCodec, codepoint: int) -> None:
    ends = Ends(codec, clean, codepoint)
    for _ in range(40):
        ends.send(3)
        ends.acknowledge()
    assert set(ends.sent) == {codepoint} and ends.state == CAPABLE


def test_ten_packets_are_marked_and_then_none_until_the_marks_are_counted(codec: KernelCodec) -> None:
    ends = Ends(codec, clean)
    for _ in range(30):
        ends.send()
    assert ends.sent == [ECT0] * 10 + [0] * 20 and ends.state == UNKNOWN
    ends.acknowledge()
    assert ends.state == CAPABLE
    ends.send()
    ends.acknowledge()
    assert ends.sent[-1] == ECT0 and ends.state == CAPABLE


def test_a_test_ends_with_its_time(codec: KernelCodec) -> None:
    ends = Ends(codec, clean)
    ends.send(wait=TEST)
    ends.send()
    assert ends.sent == [ECT0, 0]


def test_a_path_that_swallows_marked_packets_carries_the_others(codec: KernelCodec) -> None:
    ends = Ends(codec, lambda codepoint: None if codepoint else 0)
    for _ in range(40):
        ends.send()
        ends.acknowledge()
    assert ends.sent == [ECT0] * 10 + [0] * 30 and ends.state == UNKNOWN


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (lambda codepoint: 0, tuple),  # bleached
        (lambda codepoint: ECT1 if codepoint else 0, tuple),  # another mark
        (clean, lambda seen: (seen[0] // 2, seen[1], seen[2])),  # some are not told
        (clean, lambda seen: (0, 0, 0)),
        (clean, lambda seen: (seen[2], seen[0], seen[1])),
    ],
    ids=["bleached", "remarked", "too few", "none", "in the wrong place"],
)
def test_wrong_or_missing_counts_end_it_for_good(
    codec: KernelCodec, path: Path, counts: Callable[[list[int]], tuple[int, ...]]
) -> None:
    ends = Ends(codec, path, counts=counts)
    for _ in range(20):
        ends.send(2)
        ends.acknowledge()
    assert ends.state == FAILED
    assert ends.sent[-10:] == [0] * 10


def test_counts_that_go_back_end_it(codec: KernelCodec) -> None:
    told = iter([(5, 0, 0), (4, 0, 1)])
    ends = Ends(codec, clean, counts=lambda seen: next(told))
    for _ in range(2):
        ends.send()
        ends.acknowledge()
    assert ends.state == FAILED


def test_congestion_that_is_experienced_counts_as_a_mark(codec: KernelCodec) -> None:
    dice = Random(4)
    ends = Ends(codec, lambda codepoint: CE if codepoint and dice.random() < 0.5 else codepoint)
    for _ in range(50):
        ends.send(2)
        ends.acknowledge()
    assert ends.state == CAPABLE


def test_losses_and_acknowledgements_of_few_ranges_are_no_fault_of_the_path(codec: KernelCodec) -> None:
    dice = Random(3)
    for _ in range(20):
        ends = Ends(codec, lambda codepoint: None if dice.random() < 0.3 else codepoint)
        for _ in range(200):
            ends.send(dice.randrange(1, 5))
            if dice.random() < 0.4:
                ends.acknowledge()
        assert ends.state == CAPABLE


def test_packets_on_another_path_are_not_missed(codec: KernelCodec) -> None:
    ends = Ends(codec, clean)
    for _ in range(20):
        ends.send()
        ends.elsewhere()
        ends.acknowledge()
    assert ends.state == CAPABLE
