"""When a client that hears nothing repeats, looks for another way, and gives up: RFC 9002 §6.2. Sans-IO.

The times are those of Chromium 156, measured and computed as its QUIC library does. From the first packet on that has
no answer: a repeat at each probe timeout, which doubles (RFC 9002 §6.2.1); after four probe timeouts the path is
taken for a bad one; and at the end of what seven timeouts would be (§7.6 of older drafts: two tail loss probes, and
five doubling timeouts of at least 200 ms) the connection is over, 6.4 s for a short round trip. Shortly before, one
more repeat was seen in each of the captures. An acknowledgement of anything newer begins all this anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

NEVER: Final = float("inf")
#: Probe timeouts until the path is taken for a bad one.
_DEGRADED: Final = 4
#: Tail loss probes, and timeouts that double, until the connection is over.
_TAIL_PROBES: Final = 2
_TIMEOUTS: Final = 5
#: The shortest such timeout, and the shortest time between tail loss probes while more than one packet is under way
#: (seconds); of a single one it is half of the former and one and a half round trips.
_SHORTEST_TIMEOUT: Final = 0.2
_SHORTEST_PROBE: Final = 0.01
#: The last repeat is so much earlier than the end (seconds): 0.79 to 0.83 in four of four captures.
_LAST_REPEAT: Final = 0.81
#: A session is told to be silent after three probe timeouts, but not before this (seconds): who is busy for a moment
#: is not dead.
_SILENT_TIMEOUTS: Final = 1 + 2 + 4
SHORTEST_SILENCE: Final = 2.0
_MAX_BACKOFF: Final = 16


class RoundTrip(NamedTuple):
    """What is known of the path (seconds): RFC 9002 §5.3 and §6.2.1."""

    smoothed: float
    variation: float
    pto: float


def gives_up_after(round_trip: RoundTrip, *, several: bool) -> float:
    """For how long nothing may be acknowledged (seconds); ``several``: more than one packet was under way at the
    beginning."""
    smoothed = round_trip.smoothed
    alone = 1.5 * smoothed + _SHORTEST_TIMEOUT / 2
    probe = max(2 * smoothed, _SHORTEST_PROBE if several else alone)
    timeout = max(smoothed + 4 * round_trip.variation, _SHORTEST_TIMEOUT)
    whole = _TAIL_PROBES * probe + ((1 << _TIMEOUTS) - 1) * timeout
    return max(whole, (_DEGRADED + 2) * round_trip.pto)


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
        self.degraded_at = now + _DEGRADED * round_trip.pto
        self.tell_at = now + max(_SILENT_TIMEOUTS * round_trip.pto, SHORTEST_SILENCE)
        self.gives_up_at = now + gives_up_after(round_trip, several=several)
        self.last_repeat_at = self.gives_up_at - _LAST_REPEAT

    def repeat_at(self, pto: float) -> float:
        """When the next probe timeout is over; ``pto`` without backoff."""
        return NEVER if self.since == NEVER else self._sent_at + pto * (1 << min(self.repeats, _MAX_BACKOFF))
