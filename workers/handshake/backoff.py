"""How long a client waits before its next attempt, by what the last one met: bounded, growing, with jitter.

Somebody who may be watching sees the attempts. A site that did not take us for its client is visited again as by a
person, after minutes: no browser comes back every few seconds. A server that says nothing at all is called again as a
browser's error page calls, and then as a browser that has found QUIC broken. Only failures that a browser has no
answer to (a refused tunnel, a lost session) are retried with a plain backoff.
"""

from __future__ import annotations

from random import Random
from typing import Final

from qre.causes import Cause
from qre.dataplane.protocol import CONFIRM_TIMEOUT

#: A pause differs from its step by up to this part of it.
_JITTER: Final = 0.25
#: Whoever has these has seen the site's page.
VISITS: Final = frozenset({Cause.NOT_RECOGNISED, Cause.CLOCK_OFF})
#: What another time may put right: a clock that was set is news.
BY_THE_CLOCK: Final = frozenset({Cause.CLOCK_OFF, Cause.CLOCK_BEHIND, Cause.CLOCK_AHEAD, Cause.NOT_RECOGNISED})
#: Multiples of the shortest pause: the one more visit, where there were sessions before.
_ONCE_MORE: Final = (5.0, 15.0)
#: Multiples of the longest pause: the first one after a page, and no page after more.
_AFTER_PAGE: Final = (2.0, 60.0)
#: Multiples of the shortest pause while nothing answers, at most the longest one: a browser's error page.
_RELOADS: Final = (1.0, 5.0, 30.0, 60.0)
#: Multiples of the longest pause after that, doubling: QUIC is broken for so long.
_BROKEN: Final = (5.0, 60.0)
#: Seconds; what a thousand clients do in the same second is an attack.
_SPREAD: Final = 2.5
_SPREAD_BESIDE: Final = 1.5
#: A session that lived for less than this counts as a failed attempt (seconds): one of which nothing ever came back
#: does.
_SHORT_LIFE: Final = 1.5 * CONFIRM_TIMEOUT
#: While another machine with the same short id is connected (seconds): each attempt would be the end of a session.
_TWIN_PAUSE: Final = (30.0, 45.0)
#: After a longer one the next attempt begins within this time (seconds).
_AT_ONCE: Final = 0.25
#: From how many silent attempts in a row on the way itself is suspected.
_SUSPICIOUS: Final = 2


def spread(random: Random, *, beside: bool = False) -> float:
    """Seconds from when nothing comes back until an attempt, ``beside`` the session or after it: not all clients of a
    server that died at once."""
    return random.uniform(0.0, _SPREAD_BESIDE if beside else _SPREAD)


class Backoff:
    """Pauses grow from ``shortest`` to ``longest`` seconds, doubling."""

    def __init__(self, shortest: float, longest: float, random: Random) -> None:
        self._shortest = shortest
        self._longest = max(shortest, longest)
        self._random = random
        self._step = shortest

    def reset(self) -> None:
        """An attempt succeeded: begin again with the shortest pause."""
        self._step = self._shortest

    def next(self) -> float:
        """Seconds to wait before the next attempt; each call doubles the following pause."""
        step = self._step
        self._step = min(self._longest, step * 2)
        pause = step * self._random.uniform(1 - _JITTER, 1 + _JITTER)
        return min(self._longest, max(self._shortest, pause))


class Pauses:
    """``shortest`` and ``longest`` in seconds: ReconnectMin and ReconnectMax."""

    def __init__(self, shortest: float, longest: float, random: Random) -> None:
        self._shortest = shortest
        self._longest = max(shortest, longest)
        self._random = random
        self._backoff = Backoff(shortest, longest, random)
        self._visits = Backoff(_AFTER_PAGE[0] * self._longest, _AFTER_PAGE[1] * self._longest, random)
        self._broken = Backoff(_BROKEN[0] * self._longest, _BROKEN[1] * self._longest, random)
        self._once_more = False  # there was a session since the last visit of the site
        self._silent = 0  # attempts without any answer, in a row

    def succeeded(self) -> None:
        """There was a session, and a good one: begin again."""
        self.network_changed()
        self._visits.reset()
        self._once_more = True

    def after_session(self, lived: float, *, unanswered: bool) -> float:
        """Seconds until the next attempt, after a session of ``lived`` seconds; ``unanswered``: nothing came back."""
        if lived < _SHORT_LIFE:
            return self.after(None)
        self.succeeded()
        return spread(self._random) if unanswered else self._random.uniform(0, _AT_ONCE)

    def network_changed(self) -> None:
        """What did not answer in another network says nothing about this one."""
        self._backoff.reset()
        self._broken.reset()
        self._silent = 0

    def ticket_refused(self) -> None:
        """The site was met with a ticket: a server of an earlier version knows none, and there was a session."""
        self._once_more = True

    def after(self, cause: Cause | None) -> float:
        """Seconds until the next attempt, after one that failed for ``cause``, or a session that ended (None)."""
        self._silent = self._silent + 1 if cause is Cause.NO_ANSWER else 0
        if cause in VISITS:
            if self._once_more:
                self._once_more = False
                return self._random.uniform(*_ONCE_MORE) * self._shortest
            return self._visits.next()
        if cause is not Cause.NO_ANSWER:
            self._broken.reset()
            least = self._random.uniform(*_TWIN_PAUSE) if cause is Cause.TWIN else 0.0
            return max(self._backoff.next(), least)
        if self._silent > len(_RELOADS):
            return self._broken.next()
        step = self._shortest * _RELOADS[self._silent - 1] * self._random.uniform(1 - _JITTER, 1 + _JITTER)
        return min(self._longest, max(self._shortest, step))

    @property
    def udp_seems_blocked(self) -> bool:
        """Whether nothing at all has answered several times in a row."""
        return self._silent >= _SUSPICIOUS
