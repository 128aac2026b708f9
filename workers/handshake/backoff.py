"""Bounded exponential backoff with jitter: how long to wait before the next attempt."""

from __future__ import annotations

from random import Random

#: A pause differs from its step by up to this part of it.
_JITTER = 0.25


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
