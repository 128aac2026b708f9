"""Whether the path preserves ECN marks: RFC 9000 §13.4.2 and Appendix A.4, as ``kmod/ecn.c`` does it.

The first packets are marked, then none until acknowledgements have counted the marks correctly; after a wrong count
no packet is marked again::

    off ── begin() ──► testing ── ten packets, or the time of a test ──► unknown
                          ├───────────────── counted rightly ──────────────┴──► capable
                          └── not counted, or wrongly, from any of these ──► failed

Another path begins anew. No packets and no clocks here; numbers are those of packets.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from qre.wire.frames import Ack
from qre.workers.dataplane.inner.ecn import ECT1, NOT_ECT

TEST_PACKETS: Final = 10
#: Packets on other paths that are remembered.
_SKIPPED: Final = 8
#: More than any packet number.
_NEVER: Final = 1 << 64


class EcnState(enum.IntEnum):
    OFF = 0
    TESTING = 1
    UNKNOWN = 2
    CAPABLE = 3
    FAILED = 4


class PathEcn:
    """The marks of one session's packets. ``codepoint``: what they should bear, ECT(0), ECT(1) or nothing."""

    __slots__ = (
        "_again",
        "_counted",
        "_counts",
        "_from",
        "_skipped",
        "_tested",
        "_to",
        "_until",
        "codepoint",
        "settled",
        "state",
    )

    def __init__(self, codepoint: int) -> None:
        self.codepoint = codepoint
        self.begin()

    def begin(self) -> None:
        """Begin the test of a new path."""
        self.state = EcnState.TESTING if self.codepoint else EcnState.OFF
        self.settled = NOT_ECT  # what packets bear in every other state
        self._tested = 0  # packets that the test has marked
        self._from = self._to = 0  # their numbers, the last one not among them
        self._again = _NEVER  # everything from this number on is marked
        self._until = 0.0  # when the test ends
        self._skipped: list[int] = []  # numbers among the marked ones that are not
        self._counted = False
        self._counts = (0, 0, 0)  # the peer's last counts

    def mark(self, first: int, count: int, now: float, test: float) -> int:
        """The codepoint for ``count`` packets from number ``first`` on; ``test``: how long a test lasts (seconds).
        Once it has ended, ``settled`` has the same value."""
        if self.state is not EcnState.TESTING:
            return self.settled
        if not self._tested:
            self._from, self._until = first, now + test
        elif self._tested >= TEST_PACKETS or now >= self._until:
            self.state = EcnState.UNKNOWN
            return NOT_ECT
        self._tested += count
        self._to = first + count
        return self.codepoint

    def skip(self, number: int) -> None:
        """The packet with this number takes another path, without a mark."""
        self._skipped = [*self._skipped, number][-_SKIPPED:]

    def acknowledged(self, ack: Ack, before: int, following: int) -> None:
        """An ACK frame whose largest number is above ``before``, the largest acknowledged until then (-1: none was);
        ``following``: the next number that is used."""
        if self.state in {EcnState.OFF, EcnState.FAILED}:
            return
        newly = sum(self._marked(max(first, before + 1), last) for first, last in ack.ranges if last > before)
        if not self._counted_rightly(ack.ecn, newly):
            self.state, self.settled = EcnState.FAILED, NOT_ECT
            return
        if ack.ecn:
            self._counted, self._counts = True, (ack.ecn[0], ack.ecn[1], ack.ecn[2])
        if newly and self.state is not EcnState.CAPABLE:
            # While the test goes on, the next packets are marked anyhow.
            self._again = self._to if self.state is EcnState.TESTING else following
            self.state, self.settled = EcnState.CAPABLE, self.codepoint

    def _marked(self, first: int, last: int) -> int:
        """Marked packets in the range."""
        found = _shared(first, last, self._from, self._to) + _shared(first, last, self._again, _NEVER)
        skipped = [
            number
            for number in self._skipped
            if first <= number <= last and (self._from <= number < self._to or number >= self._again)
        ]
        return max(found - len(skipped), 0)

    def _counted_rightly(self, counts: Sequence[int], newly: int) -> bool:
        """Whether the counts are consistent with the marks (§13.4.2.1)."""
        if not counts:
            return not newly
        more = [now - before for now, before in zip(counts, self._counts, strict=True)]
        own, other = (1, 0) if self.codepoint == ECT1 else (0, 1)
        # What was counted before the first acknowledgement may be older than the session.
        if min(more) < 0 or (self._counted and more[other]):
            return False
        return more[own] + more[2] >= newly


def _shared(first: int, last: int, begin: int, end: int) -> int:
    """How many numbers the two ranges share; those of the second end before ``end``."""
    return max(min(last, end - 1) - max(first, begin) + 1, 0)
