"""Rate limits for new flows: token buckets, one for all sources and one for each source prefix.

Prefixes share a fixed number of buckets by Python's keyed hash of strings, so a flood from any number of sources
allocates nothing, and an attacker cannot choose whose bucket to empty. Sans-IO: time is passed in.
"""

from __future__ import annotations

from array import array

_BUCKETS = 4096


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


class Admission:
    """One bucket for all sources and one for each prefix; a new flow needs a token of both."""

    def __init__(self, *, rate: float, burst: float, prefix_rate: float, prefix_burst: float) -> None:
        self._all = TokenBucket(rate, burst)
        self.prefix_rate = prefix_rate
        self.prefix_burst = prefix_burst
        self._tokens = array("d", [prefix_burst]) * _BUCKETS
        self._at = array("d", [0.0]) * _BUCKETS

    def take(self, prefix: str, now: float) -> bool:
        """Whether a new flow from ``prefix`` is admitted; takes a token of both buckets then."""
        bucket = hash(prefix) % _BUCKETS
        tokens = self._tokens[bucket] + max(0.0, now - self._at[bucket]) * self.prefix_rate
        tokens = min(self.prefix_burst, tokens)
        self._at[bucket] = now
        self._tokens[bucket] = tokens
        if tokens < 1.0 or not self._all.take(now):
            return False
        self._tokens[bucket] = tokens - 1.0
        return True
