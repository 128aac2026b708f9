"""Plays a recorded visit: when a datagram of which length is due after a client's Finished and after its request.

What Dest sent when it knew that earlier ones had arrived waits for the same news from this client. A client that does
not bring it ends the play: nobody waits for a page that is made of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from qre.dest_profile import Follows, RecordedVisit, Spoken

#: How long a datagram waits for news of earlier ones (seconds).
_PATIENCE: Final = 1.0
_MICROSECONDS: Final = 1_000_000
#: Datagrams that differ by so many bytes at most say the same.
_ALIKE: Final = 8


class VisitScript:
    """Say ``finished``, ``asked`` and ``asked_icon``, each once; then ``take`` what is due whenever ``next_due`` has
    come. Times are monotonic, in seconds. ``later``: how much later than recorded (seconds) each part is due.
    ``icon``: the path of the icon for which the last part waits; empty: there is no such part."""

    def __init__(self, visit: RecordedVisit, later: Mapping[Follows, float] | None = None) -> None:
        self._spoken = visit.spoken
        self.icon = visit.icon
        self._later = later or {}
        self._round_trip = visit.round_trip_us / _MICROSECONDS
        self._at = 0  # of the next one
        self._began: dict[Follows, float] = {}
        self._shift = 0.0  # how much later than recorded this client is, since it finished or asked
        self._last = 0.0  # when the last one was due
        self._arrived = 0
        self._hears = True

    def finished(self, now: float) -> None:
        """The client's Finished has come."""
        self._began.setdefault(Follows.FINISHED, now)

    def asked(self, now: float, *, icon: bool = False) -> None:
        """The client's request has come; ``icon``: that of the page's icon will."""
        self._began.setdefault(Follows.PAGE, now)
        if not icon:
            self.icon = ""
            self._spoken = tuple(each for each in self._spoken if not each.icon)

    def asked_icon(self, now: float) -> None:
        """The client's request of the icon has come."""
        self._began.setdefault(Follows.ICON, now)

    def arrived(self, count: int, now: float) -> None:
        """So many of the eliciting datagrams that were taken are acknowledged, or lost."""
        if count <= self._arrived:
            return
        waited = self._next is not None and self._arrived < self._next.acknowledged <= count
        self._arrived = count
        due = self._due()
        if waited and due is not None:
            self._shift += max(0.0, now + self._round_trip - due)

    def hears_no_more(self) -> None:
        """No news of what has arrived comes any more, and nothing waits for it."""
        self._hears = False

    @property
    def icon_asked(self) -> bool:
        """Whether ``asked_icon`` was said."""
        return Follows.ICON in self._began

    @property
    def speaks(self) -> bool:
        """Whether something is due, now or later, without another word of the client's but acknowledgements."""
        return self._next is not None and self._next.follows in self._began

    @property
    def waits_for_news(self) -> bool:
        """Whether something is left, but for the last that has to be acknowledged, that waits for news of earlier
        ones."""
        left = self._spoken[self._at :]
        return self.to_be_acknowledged > 1 and any(each.acknowledged > self._arrived for each in left)

    @property
    def last_to_be_acknowledged(self) -> bool:
        """Whether the next one is the last that has to be acknowledged."""
        spoken = self._next
        return spoken is not None and spoken.eliciting and not spoken.probe and self.to_be_acknowledged == 1

    @property
    def to_be_acknowledged(self) -> int:
        """Datagrams that are left and have to be acknowledged; probes of the path's MTU need not be."""
        return sum(each.eliciting and not each.probe for each in self._spoken[self._at :])

    def next_due(self) -> float | None:
        """When to ``take``; None when nothing is due by itself."""
        due = self._due()
        return due if due is None or self._may_go() else due + _PATIENCE

    def take(self, now: float) -> Spoken | None:
        """The next datagram that is due; call it until it gives None."""
        due = self.next_due()
        if due is None or now < due:
            return None
        if not self._may_go():
            self.end()
            return None
        spoken = self._spoken[self._at]
        self._at += 1
        self._last = due
        if self._next is not None and self._next.follows is not spoken.follows:
            self._shift = 0.0
        return spoken

    def end(self) -> None:
        """Nothing more is due."""
        self._at = len(self._spoken)

    @property
    def _next(self) -> Spoken | None:
        return self._spoken[self._at] if self._at < len(self._spoken) else None

    def _may_go(self) -> bool:
        return self._next is not None and (self._arrived >= self._next.acknowledged or not self._hears)

    def _due(self) -> float | None:
        spoken = self._next
        if spoken is None or spoken.follows not in self._began:
            return None
        recorded = spoken.at_us / _MICROSECONDS + self._later.get(spoken.follows, 0.0)
        return max(self._last, self._began[spoken.follows] + recorded + self._shift)


def choose(visits: Sequence[RecordedVisit], random: Callable[[int], bytes]) -> VisitScript | None:
    """A script of one of them, by ``random(n)`` bytes; None when there is none. Each part of it begins as long after
    the client as that of any of them did, or at a time between two: a few recordings are a few times, and a site's
    have no gaps."""
    if not visits:
        return None
    visit = visits[int.from_bytes(random(4)) % len(visits)]
    later = {}
    for follows in Follows:
        own = _first(visit, follows)
        if own is not None:
            firsts = [_first(each, follows) for each in visits]
            known = sorted(each.at_us for each in firsts if each is not None and _says_the_same(each, own))
            later[follows] = (_between(known, int.from_bytes(random(4)) / 2**32) - own.at_us) / _MICROSECONDS
    return VisitScript(visit, later)


def _first(visit: RecordedVisit, follows: Follows) -> Spoken | None:
    return next((each for each in visit.spoken if each.follows is follows), None)


def _says_the_same(one: Spoken, other: Spoken) -> bool:
    """An acknowledgement that was put off has other times than a page."""
    return one.eliciting is other.eliciting and abs(one.length - other.length) <= _ALIKE


def _between(values: Sequence[int], part: float) -> float:
    """The quantile ``part`` of the distribution that ascending ``values`` are drawn from: linear between two."""
    place = part * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])
