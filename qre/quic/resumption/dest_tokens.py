"""Dest's own tokens for later connections (RFC 9000 §8.1.3), as the visitor has brought them: each for one client.

A token that two clients show is seen to come from one hand. Which have been given is not written down: all that were
known when a process began count as given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

#: More than a profile of Dest can have.
_REMEMBERED: Final = 256


class DestTokens:
    """``given``: those that may have been given before."""

    def __init__(self, given: Iterable[bytes] = ()) -> None:
        self._given: OrderedDict[bytes, None] = OrderedDict()
        for token in given:
            self._give(token)

    def take(self, tokens: Sequence[bytes], room: int) -> bytes:
        """The first of these that has not been given, of at most ``room`` bytes; empty: there is none."""
        for token in tokens:
            if 0 < len(token) <= room and token not in self._given:
                self._give(token)
                return token
        return b""

    def _give(self, token: bytes) -> None:
        self._given[token] = None
        while len(self._given) > _REMEMBERED:
            self._given.popitem(last=False)
