"""How many newcomers are looked at: as many as come, and under pressure a fair share for each network.

There is a rate of newcomers that one core can work off. Far below it nobody waits. From half of it on, what a network
may have at once shrinks as the rate grows: whoever takes most waits first, and at the full rate only those get in who
have had nothing for a moment. Only what turned out to be worth it is charged to a network: anybody can forge the
address of a neighbour, and who shares one with others is not punished for what they send. A first look at a newcomer
costs a tenth of the rest, and has a bound of its own.

Where clients came from lately is known, and a part of the rate is kept for these networks: no flood from everywhere
keeps them out. Who forges one of their addresses takes from that part alone, and of one network's share.

Networks share a fixed number of counters by Python's keyed hash of strings, so a flood from any number of sources
allocates nothing, and nobody can choose whose counter to fill. Sans-IO: time is passed in.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from typing import Final

_COUNTERS: Final = 16_384
#: Seconds in which a count falls to a third, and over which rates are taken.
_MEMORY: Final = 2.0
#: Shares of the capacity: where newcomers begin to wait, and where even those do who had nothing lately.
_PRESSURE, _FULL = 0.5, 2.0
#: What one network may have had lately when the pressure begins; halved 7 times until the full rate.
_LARGEST_SHARE: Final = 64.0
_HALVINGS: Final = 7.0
#: Networks whose clients are remembered, the share of the capacity that is kept for them, and what one of them may
#: have had lately.
_MOST_KNOWN: Final = 4096
_RESERVE: Final = 0.1
_KNOWN_SHARE: Final = 8.0
#: Looks for nothing, a second, from which on it is a flood.
_MANY_WASTED: Final = 50.0


class TokenBucket:
    """``rate`` tokens per second, at most ``burst``."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = now
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


class _Rate:
    """How often something happened lately, a second."""

    def __init__(self) -> None:
        self._count = self._at = 0.0

    def add(self, now: float) -> None:
        """Once more."""
        self._count, self._at = _faded(self._count, self._at, now) + 1.0, now

    def now(self, now: float) -> float:
        return _faded(self._count, self._at, now) / _MEMORY

    def exceeds(self, rate: float, now: float) -> bool:
        """Whether it is more than ``rate``. As it only fades, what was less is less."""
        return self._count > rate * _MEMORY and self.now(now) > rate


class _Counts:
    """Counts by name, which fade. A name has a counter in either half; the smaller holds fewer of others."""

    def __init__(self, size: int) -> None:
        self._half = size
        self._counts = array("d", [0.0]) * (2 * size)
        self._at = array("d", [0.0]) * (2 * size)

    def of(self, name: str, now: float) -> float:
        """How many of ``name`` there were lately."""
        return min(_faded(self._counts[place], self._at[place], now) for place in self._places(name))

    def add(self, name: str, now: float) -> None:
        """One more."""
        for place in self._places(name):
            self._counts[place], self._at[place] = _faded(self._counts[place], self._at[place], now) + 1.0, now

    def _places(self, name: str) -> tuple[int, int]:
        hashed = hash(name)
        return hashed % self._half, self._half + (hashed >> 24) % self._half


def _faded(count: float, at: float, now: float) -> float:
    return count * math.exp(min(0.0, at - now) / _MEMORY)


class Admission:
    """``capacity``: newcomers a second that one core can work off; ``looks``: first looks."""

    def __init__(self, capacity: float, looks: float) -> None:
        self.capacity = capacity
        self.looks = looks
        self._networks = _Counts(_COUNTERS)
        self._looked, self._charged, self._wasted = _Rate(), _Rate(), _Rate()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._reserve = TokenBucket(capacity * _RESERVE, capacity * _RESERVE)

    def take(self, network: str, now: float) -> bool:
        """Whether one more from ``network`` may be looked at now."""
        if not self._has_share(network, now) and not self._is_expected(network, now):
            return False
        self._looked.add(now)
        return True

    def _has_share(self, network: str, now: float) -> bool:
        if self._looked.exceeds(self.looks, now):
            return False
        if not self._charged.exceeds(self.capacity * _PRESSURE, now):
            return True
        rate = self._charged.now(now)
        return rate <= self.capacity * _FULL and self._networks.of(network, now) <= self.share(rate)

    def _is_expected(self, network: str, now: float) -> bool:
        known = network in self._known and self._networks.of(network, now) <= _KNOWN_SHARE
        return known and self._reserve.take(now)

    def know(self, network: str) -> None:
        """A client came from there."""
        self._known[network] = None
        self._known.move_to_end(network)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def share(self, rate: float) -> float:
        """What one network may have had lately when ``rate`` newcomers a second are admitted; unbounded without
        pressure."""
        pressure = (rate / self.capacity - _PRESSURE) / (1.0 - _PRESSURE)
        return math.inf if pressure <= 0.0 else _LARGEST_SHARE * 2.0 ** (-_HALVINGS * min(1.0, pressure))

    def charge(self, network: str, now: float) -> None:
        """What came from ``network`` was worth the look."""
        self._networks.add(network, now)
        self._charged.add(now)

    def flood(self, now: float) -> bool:
        """Whether so many looks were for nothing lately that nothing is done before one."""
        return self._wasted.exceeds(_MANY_WASTED, now)

    def waste(self, now: float) -> bool:
        """A look was for nothing. Whether there are so many of these that nothing more is done for one."""
        self._wasted.add(now)
        return self.flood(now)
