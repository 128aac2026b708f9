"""What answers one read of Dest's socket leaves in one go, and not sooner for strangers than for clients.

Dest's datagrams that are read together came within some microseconds of each other. Making ours takes longer than
that: sent one by one, each as soon as it is made, they would be further apart than a site's. And strangers' wait for
each other, too: what lies between two datagrams is then the same for both. And Dest's flight for a stranger waits as
long as ours takes to be made: who knocks often enough would else see the difference.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Final

from qre.wire.packet import is_short
from qre.workers.handshake.port.flow_parts import Address

#: What the kernel cuts into datagrams by itself: how many, and how many bytes of them.
_MOST_SEGMENTS: Final = 64
_MOST_BYTES: Final = 65_000
#: Of how many answers of ours it is known how long they took to be made.
_KNOWN: Final = 64
#: A wait is a loop, because a sleep ends late: one takes so long at most (seconds), all together so much of the time,
#: and that of so many seconds in a row.
_LONGEST_WAIT: Final = 0.002
_SHARE: Final = 0.02
_SAVED: Final = 1.0


@dataclass(slots=True)
class _Held:
    """Datagrams that leave by one call: all of ``segment`` bytes but the last, or one if that is 0."""

    address: Address
    parts: list[bytes]
    ecn: int
    segment: int
    whole: bool
    room: int  # bytes

    def takes(self, data: bytes, address: Address, ecn: int, *, whole: bool) -> bool:
        """Whether one more was added."""
        length, count = len(self.parts[0]), len(self.parts)
        full = count == _MOST_SEGMENTS or len(self.parts[-1]) < length or (count == 1 and self.segment)
        fits = 0 < len(data) <= min(length, self.room)
        if full or not fits or (self.address, self.ecn, self.whole) != (address, ecn, whole):
            return False
        self.parts.append(data)
        self.segment, self.room = length, self.room - len(data)
        return True


class Pace:
    """How long answers of ours take (seconds), and waits that are like them. ``choose`` takes one of several; else
    chance does."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        choose: Callable[[Sequence[float]], float] | None = None,
    ) -> None:
        self.clock = clock
        self._choose = choose or SystemRandom().choice
        self._taken: deque[float] = deque(maxlen=_KNOWN)
        self._may_wait, self._since = _SHARE * _SAVED, clock()

    def took(self, seconds: float) -> None:
        """An answer was made in this time."""
        self._taken.append(min(seconds, _LONGEST_WAIT))

    def wait(self, began: float) -> None:
        """Until an answer that was begun at ``began`` would be made; not at all while there are too many."""
        if not self._taken:
            return
        now = self.clock()
        until = began + self._choose(self._taken)
        self._may_wait = min(_SHARE * _SAVED, self._may_wait + _SHARE * (now - self._since))
        self._since = now
        if until - now > self._may_wait:
            return
        self._may_wait -= max(0.0, until - now)
        while self.clock() < until:
            pass


class Volley:
    """``send`` puts a datagram on the wire with an ECN mark, or several of ``segment`` bytes; in fragments, where it
    must and is not to be whole."""

    def __init__(self, send: Callable[[Address, bytes, int, int, bool], None], pace: Pace | None = None) -> None:
        self._send = send
        self._pace = pace or Pace()
        self._began = 0.0
        #: Whether this is a flight, and made by us (True) or Dest's own (False).
        self._ours: bool | None = None
        self._held: list[_Held] | None = None
        self._afterwards: dict[Callable[[], None], None] = {}
        #: Where in ``_held`` begins what answers datagrams that Dest sent in one piece; None: it does not.
        self._piece: int | None = None

    def together(self) -> Volley:
        """A context: what is said meanwhile leaves at the end."""
        return self

    def __enter__(self) -> None:
        self._held, self._ours = [], None
        self._began = self._pace.clock()

    def __exit__(self, *_: object) -> None:
        try:
            if self._held and self._ours is not None:
                self._keep_pace(ours=self._ours)
            if self._held or self._afterwards:
                self.let_out()
        finally:
            self._held = None

    def answers(self, data: bytes, *, ours: bool, age: float) -> None:
        """What is said stands for ``data`` of Dest's, which came ``age`` seconds ago: it is ours, or Dest's own. With
        a long header it is a part of a flight."""
        if data and not is_short(data):
            self._began = min(self._began, self._pace.clock() - age)
            self._ours = ours

    def _keep_pace(self, *, ours: bool) -> None:
        if ours:
            self._pace.took(self._pace.clock() - self._began)
        else:
            self._pace.wait(self._began)

    @contextlib.contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """A context inside ``together``: what is said answers datagrams that Dest sent in one piece, and leaves so as
        far as lengths and marks allow."""
        self._piece = len(self._held or ())
        try:
            yield
        finally:
            self._piece = None

    def say(self, address: Address, data: bytes, ecn: int, segment: int = 0, *, whole: bool = False) -> None:
        """Send one datagram, or several, now or with the others; always in this order."""
        held = self._held
        if held is None:
            self._send(address, data, ecn, segment, whole)
            return
        joins = self._piece is not None and len(held) > self._piece and not segment
        if not (joins and held[-1].takes(data, address, ecn, whole=whole)):
            held.append(_Held(address, [data], ecn, segment, whole, _MOST_BYTES - len(data)))

    def then(self, work: Callable[[], None]) -> None:
        """Do ``work`` when everything said so far is on the wire, once for all that ask for the same."""
        if self._held is None:
            work()
        else:
            self._afterwards[work] = None

    def let_out(self) -> None:
        """Send what is held."""
        held, afterwards = self._held or [], list(self._afterwards)
        self._held = None if self._held is None else []
        self._afterwards.clear()
        self._piece = None if self._piece is None else 0
        for each in held:
            self._send(each.address, b"".join(each.parts), each.ecn, each.segment, each.whole)
        for work in afterwards:
            work()
