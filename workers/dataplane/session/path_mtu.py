"""How large the UDP payloads of one session may be: DPLPMTUD, RFC 8899 §5 and RFC 9000 §14.3 and §14.4.

No packets, sockets or clocks here: the session sends what ``due`` requests, and reports what was sent and
acknowledged. One datagram at a time is watched: a probe (PING and PADDING), or one that carries user data. It is
lost when something sent later was acknowledged and it was not, never because time passed: a path that is down for a
while proves nothing. A small PING is sent when acknowledgements are missing.

    waiting ── begin ──► searching ── a size failed, or none is left ──► complete ── data lost ──► confirming
                          ▲  ▲ ▲                                          │    ▲ ▲                   │  │
                          │  │ └─────────────── raise timer ──────────────┘    └─┼─── acknowledged ──┘  │
                          │  └────────────────── begin (the peer moved) ─────────┘                      │
                          └───────────────────── lost again and again: back to the base ────────────────┘

It must never give a size above the peer's limit or below the base.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qre.ends import Role
from qre.wire.overhead import BASE_UDP_PAYLOAD, BROWSER_UDP_PAYLOAD

#: RFC 9002 §6.1.1 and §6.1.2.
_PACKET_THRESHOLD: Final = 3
_TIME_THRESHOLD: Final = 9 / 8
_NEVER: Final = float("inf")


@dataclass(frozen=True)
class Search:
    """How one end searches. Sizes are UDP payloads in bytes, times seconds."""

    base: int = BASE_UDP_PAYLOAD  # the size that every path is assumed to carry
    sizes: tuple[int, ...] = (1326, 1389, 1420, 1436)  # ascending; those that quic-go probes
    tries: int = 3  # probes of one size that may be lost: MAX_PROBES
    raise_after: float = 600.0  # PMTU_RAISE_TIMER
    settle_within: float = 3.0  # a search from the base counts as ended after this time
    watch_every: float = 0.5  # how long arrived user data of a size proves that the size works
    spacing: float = 0.0  # round trips before each probe


#: The search of each role. Sites take their time: quic-go five round trips.
#: A client's hello has shown that the path takes a browser's largest size, and it seldom needs more.
SEARCHES: Final[Mapping[Role, Search]] = {
    Role.SERVER: Search(spacing=5.0),
    Role.CLIENT: Search(sizes=(BROWSER_UDP_PAYLOAD, *Search.sizes)),
}


class MtuState(enum.StrEnum):
    WAITING = "waiting"
    SEARCHING = "searching"
    COMPLETE = "complete"
    CONFIRMING = "confirming"


class _Watched:
    """The one datagram that is being watched."""

    __slots__ = ("check_at", "number", "sent_at", "size")

    def __init__(self, number: int, size: int, sent_at: float, check_at: float) -> None:
        self.number = number
        self.size = size
        self.sent_at = sent_at
        self.check_at = check_at


class PathMtu:
    """The path of one session. ``size`` is the UDP payload in use; ``limit`` the largest that the peer takes."""

    __slots__ = (
        "_due_at",
        "_losses",
        "_proven",
        "_proven_until",
        "_rtt",
        "_searched_at",
        "_settle_by",
        "_sizes",
        "_top",
        "_watched",
        "base",
        "search",
        "settled",
        "size",
        "state",
        "watching",
    )

    def __init__(self, search: Search, limit: int) -> None:
        self.search = search
        self.base = min(search.base, limit)
        self._sizes = [size for size in search.sizes if self.base < size <= limit]
        self.size = self.base
        self.state = MtuState.WAITING
        #: Whether ``size`` is more than the beginning of a search; otherwise it must not be reported to senders.
        self.settled = False
        #: Whether user data above the base should be watched: ask ``wants`` then. Read for every batch.
        self.watching = False
        self._top = self.largest  # no size above it is tried before the raise timer
        self._watched: _Watched | None = None
        self._losses = 0  # in a row, of one size
        self._proven = self.base  # what user data has proven, until then
        self._proven_until = 0.0
        self._due_at = self._settle_by = _NEVER
        self._searched_at = self._rtt = 0.0  # when the last probe's fate was known, and the last round trip

    @property
    def largest(self) -> int:
        """The largest possible result of the search."""
        return self._sizes[-1] if self._sizes else self.base

    def begin(self, now: float, rtt: float = 0.0) -> None:
        """The session is confirmed, or its peer moved: search from the base. ``rtt``: what is known of the path's
        round trip (seconds)."""
        self._top, self._rtt = self.largest, rtt
        self._search_from_base(now)

    def proven(self, size: int, ago: float, now: float) -> None:
        """A probe of ``size`` bytes that somebody else sent on this path has arrived; it left ``ago`` seconds ago."""
        if self.state is MtuState.SEARCHING and self.size < size <= self.largest:
            self.size = max(each for each in (self.size, *self._sizes) if each <= size)
            self._search_on(now - ago)

    def _search_from_base(self, now: float) -> None:
        self.size = self.base
        self.settled = False
        self._settle_by = now + self.search.settle_within
        self._search_on(now)

    def _search_on(self, now: float) -> None:
        """Try the next size, or end the search."""
        if self._candidate() is None:
            again = self.size < self.largest
            self._complete(now + self.search.raise_after if again else _NEVER)
        else:
            self._seek(now)

    def _seek(self, now: float) -> None:
        self._searched_at = now
        self._become(MtuState.SEARCHING, now + self.search.spacing * self._rtt)

    def _complete(self, raise_at: float) -> None:
        self.settled = True
        self._proven = self.base
        self._become(MtuState.COMPLETE, raise_at)

    def _become(self, state: MtuState, due_at: float) -> None:
        self.state = state
        self._due_at = due_at
        self._watched = None
        self._losses = 0
        self.watching = state is MtuState.COMPLETE and self.size > self.base

    def _candidate(self) -> int | None:
        """The size to try next."""
        return next((size for size in self._sizes if self.size < size <= self._top), None)

    # --- what to send ---

    def deadline(self) -> float:
        """When to call ``due``."""
        at = self._watched.check_at if self._watched is not None else self._due_at
        return at if self.settled else min(at, self._settle_by)

    def due(self, now: float) -> int | None:
        """The length of the PING packet to send now, as a UDP payload: that of a probe (then call ``sent``), or 0 for
        one without padding; None: nothing is due."""
        if now >= self._settle_by:
            self.settled = True
        watched = self._watched
        if watched is not None:
            if now < watched.check_at:
                return None
            watched.check_at = _NEVER
            return 0
        if now < self._due_at:
            return None
        if self.state is MtuState.CONFIRMING:
            return self.size
        if self.state is MtuState.COMPLETE:
            self._top = self.largest
            self._become(MtuState.SEARCHING, now)
        return self._candidate()

    def wants(self, longest: int, now: float) -> bool:
        """Whether a datagram of user data of this length should be watched; ask only while ``watching``."""
        if now >= self._proven_until:
            self._proven = self.base
        return longest > self._proven

    def sent(self, number: int, size: int, now: float, pto: float) -> None:
        """The datagram to watch has left as packet ``number``."""
        self._watched = _Watched(number, size, now, now + pto)
        self.watching = False

    # --- what became of it ---

    def acknowledged(self, ranges: Sequence[tuple[int, int]], now: float, rtt: float) -> None:
        """An ACK frame came: packet numbers, ``(first, last)`` each, the highest range first."""
        watched, self._rtt = self._watched, rtt
        if watched is None and self.state is MtuState.SEARCHING:
            self._due_at = self._searched_at + self.search.spacing * rtt
        if watched is None or ranges[0][1] < watched.number:
            return
        if any(first <= watched.number <= last for first, last in ranges):
            self._arrived(watched, now)
        elif ranges[0][1] >= watched.number + _PACKET_THRESHOLD or now >= watched.sent_at + _TIME_THRESHOLD * rtt:
            self._lost(watched, now)

    def _arrived(self, watched: _Watched, now: float) -> None:
        if self.state is MtuState.SEARCHING:
            self.size = watched.size
            self._search_on(now)
        else:
            raise_at = self._due_at if self.state is MtuState.COMPLETE else now + self.search.raise_after
            self._complete(raise_at if self.size < self.largest else _NEVER)
            self._proven, self._proven_until = watched.size, now + self.search.watch_every

    def _lost(self, watched: _Watched, now: float) -> None:
        losses = self._losses + 1
        if losses < self.search.tries:
            if self.state is MtuState.SEARCHING:
                self._seek(now)
            else:
                self._become(MtuState.CONFIRMING, now)
            self._losses = losses
        elif self.state is MtuState.SEARCHING:
            self._top = watched.size - 1
            self._search_on(now)
        else:  # the path has become a black hole for this size
            self.begin(now)

    def refused(self, size: int, now: float) -> bool:
        """The first hop does not take a datagram of ``size`` bytes (EMSGSIZE): no size as large is tried again
        before the raise timer. Whether it was a probe."""
        watched = self._watched
        probe = watched is not None and watched.size == size and self.state is not MtuState.COMPLETE
        self._top = min(self._top, size - 1)
        if self.size > max(self._top, self.base):
            self._search_from_base(now)
        elif self.state is MtuState.SEARCHING and (watched is None or watched.size > self._top):
            self._search_on(now)
        return probe
