"""When a client that hears nothing repeats, looks for another way, and gives up: RFC 9002 §6.2. Sans-IO.

As Chromium 156, from the first packet on that has no answer: a repeat at each probe timeout, which doubles (RFC 9002
§6.2.1); after four probe timeouts the path is taken for a bad one; the end is ``qre.dataplane.giving_up``'s. An
acknowledgement of anything newer begins all this anew. What qre.ko does of this is in ``kmod/silence.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qre.dataplane.giving_up import DEGRADED, LAST_REPEAT, RoundTrip, gives_up_after

NEVER: Final = float("inf")
#: A session is told to be silent after three probe timeouts, but not before this (seconds): who is busy for a moment
#: is not dead.
_SILENT_TIMEOUTS: Final = 1 + 2 + 4
SHORTEST_SILENCE: Final = 2.0
_MAX_BACKOFF: Final = 16


class Silence:
    """The packets that ask for an ACK and have none. ``since``: when it began; infinity: nothing is under way."""

    def __init__(self) -> None:
        self.since = NEVER
        self.repeats = 0  # at probe timeouts, in a row
        self.degraded_at = NEVER  # then a new port is tried
        self.tell_at = NEVER  # then it is told that the peer is silent
        self.gives_up_at = NEVER
        self.last_repeat_at = NEVER
        #: Of the oldest packet with user data: how long it was, and when it went out last; infinity: there is none.
        self.data_size = 0
        self.data_at = NEVER
        self._sent_at = -NEVER
        self._newest = -1  # the number of the newest packet, and of the newest with user data
        self._newest_data = -1
        self._newest_size = 0

    def sent(self, number: int, now: float, round_trip: Callable[[], RoundTrip]) -> None:
        """Packet ``number`` asks for an ACK; those just before it may, too. ``round_trip`` is asked when
        this is the first."""
        self._newest = max(self._newest, number)
        self._sent_at = now
        if self.since == NEVER:
            self._begin(now, round_trip(), several=False)

    def sent_data(self, last: int, sizes: tuple[int, int], now: float) -> None:
        """Packets with user data, the last one has number ``last``; ``sizes``: of the first one and of the last. What
        ``sent`` was told of a number behind it was no more than an ACK."""
        self._newest = self._newest_data = last
        self._newest_size = sizes[1]
        if self.data_at == NEVER:
            self.data_size, self.data_at = sizes[0], now

    def acknowledged(self, largest: int, now: float, round_trip: RoundTrip) -> None:
        """Packets up to number ``largest`` have arrived: more than was known."""
        if self._newest_data <= largest:
            self.data_at = NEVER
        elif self.data_at != NEVER:
            self.data_size = self._newest_size
        if self._newest <= largest:
            self.end()
        else:
            self._begin(now, round_trip, several=self._newest > largest + 1)

    @property
    def degraded(self) -> bool:
        """Whether the path is taken for a bad one."""
        return self.since != NEVER and self.degraded_at == NEVER

    def end(self) -> None:
        """Nothing is under way."""
        self.since = self.degraded_at = self.tell_at = self.gives_up_at = NEVER
        self.last_repeat_at = self.data_at = NEVER
        self.repeats = 0

    def begin_path(self, now: float, round_trip: RoundTrip) -> None:
        """What is under way is heard on a new path: it begins anew."""
        if self.since != NEVER:
            self._begin(now, round_trip, several=True)
            self._sent_at = now

    def _begin(self, now: float, round_trip: RoundTrip, *, several: bool) -> None:
        self.since, self.repeats = now, 0
        self.degraded_at = now + DEGRADED * round_trip.pto
        self.tell_at = now + max(_SILENT_TIMEOUTS * round_trip.pto, SHORTEST_SILENCE)
        self.gives_up_at = now + gives_up_after(round_trip, several=several)
        self.last_repeat_at = self.gives_up_at - LAST_REPEAT

    def repeat_at(self, pto: float) -> float:
        """When the next probe timeout is over; ``pto`` without backoff."""
        return NEVER if self.since == NEVER else self._sent_at + pto * (1 << min(self.repeats, _MAX_BACKOFF))
