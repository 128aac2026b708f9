"""Which packet numbers have arrived: the replay check, and the source of ACK frames (RFC 9000 §12.3, §13.2.3).

Exact within its memory, which is a bounded list of ranges above a floor. It must never accept a number twice, nor
one at or below the floor; numbers that fall out of the memory count as received.
"""

from __future__ import annotations

from bisect import bisect_right

#: Ranges that are remembered. Every lost packet leaves a gap, so this bounds how far back reordering may reach.
MAX_RANGES = 256
#: The most ranges in an ACK frame.
MAX_ACK_RANGES = 32


class ReceivedNumbers:
    """``starts[i]..ends[i]`` (inclusive, ascending, never adjacent) have arrived; so has all up to ``floor``."""

    __slots__ = ("ends", "floor", "starts")

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.starts: list[int] = []
        self.ends: list[int] = []

    @property
    def highest(self) -> int:
        """The largest number that has arrived, or ``floor``."""
        return self.ends[-1] if self.ends else self.floor

    def accept(self, number: int) -> bool:
        """Record that ``number`` arrived; False when it has, or may have, arrived before."""
        starts, ends = self.starts, self.ends
        if number <= self.floor:
            return False
        at = bisect_right(starts, number)  # the ranges before ``at`` begin at or below number
        if at and number <= ends[at - 1]:
            return False
        joins_left = at > 0 and ends[at - 1] == number - 1
        joins_right = at < len(starts) and starts[at] == number + 1
        if joins_left and joins_right:
            ends[at - 1] = ends.pop(at)
            starts.pop(at)
        elif joins_left:
            ends[at - 1] = number
        elif joins_right:
            starts[at] = number
        else:
            starts.insert(at, number)
            ends.insert(at, number)
            if len(starts) > MAX_RANGES:
                starts.pop(0)
                self.floor = ends.pop(0)
        return True

    def ack_ranges(self) -> list[tuple[int, int]]:
        """The highest ranges, descending, as ``(first, last)``."""
        return list(zip(self.starts[: -MAX_ACK_RANGES - 1 : -1], self.ends[: -MAX_ACK_RANGES - 1 : -1], strict=True))
