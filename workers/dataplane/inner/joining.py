"""Joins the packets that a client has sent in two datagrams (``qre.wire.datagram``).

Parts wait for each other in one session's Joiner, never in another's, and arrive in any order. What a peer can make
it keep is bounded: ``MOST_KEPT`` parts, of which the oldest gives way, and none is joined that has waited for
``LONGEST_WAIT``, or for so many other packets that its identifier may come again. A part is joined with the other one
of the same identifier, the same length of the packet, and exactly the bytes that are missing; where anything else has
its identifier, the older one is given up. What comes out is not checked: it may be any bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from qre.errors import UntrustedInputError
from qre.wire.datagram import DATAGRAM_HEAD, MAX_IDENTIFIER, SPLIT_CONTEXT, SPLIT_HEAD, Part, parse_part_untrusted

#: 32 parts of at most a datagram each: below 48 KB a session.
MOST_KEPT: Final = 32
#: Seconds: a few round trips.
LONGEST_WAIT: Final = 1.0
#: Identifiers behind the newest: a part is given up there, and is taken for one ahead from half the circle on.
BEHIND: Final = range(1024, 0x8000)
_CONTEXT: Final = len(SPLIT_HEAD) - 1


class _Kept(NamedTuple):
    part: Part
    until: float


class Joiner:
    """``drops`` counts the parts that are not joined. ``allowed``: whether the client may send parts at all."""

    def __init__(self, drops: Counter[str], *, allowed: bool) -> None:
        self._drops = drops
        self._allowed = allowed
        self._kept: dict[int, _Kept] = {}  # by identifier, the oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def whole_untrusted(self, plaintexts: Sequence[bytes], now: float) -> list[bytes]:
        """These plaintexts (``DATAGRAM_HEAD`` and a packet, or ``SPLIT_HEAD`` and a part), with the parts joined or
        taken out; a packet has the place of the part that completed it."""
        whole = []
        for plaintext in plaintexts:
            if plaintext[_CONTEXT] != SPLIT_CONTEXT:
                whole.append(plaintext)
            elif not self._allowed:
                self._drops["unknown-context"] += 1
            elif (packet := self._joined_untrusted(plaintext[len(SPLIT_HEAD) :], now)) is not None:
                whole.append(packet)
        return whole

    def _joined_untrusted(self, content: bytes, now: float) -> bytes | None:
        try:
            part = parse_part_untrusted(content)
        except UntrustedInputError:
            self._drops["malformed"] += 1
            return None
        self._forget(part.identifier)
        kept = self._kept.pop(part.identifier, None)
        if kept is not None:
            if now < kept.until and _fit(kept.part, part):
                first, second = (kept.part, part) if part.second else (part, kept.part)
                return b"".join((DATAGRAM_HEAD, first.data, second.data))
            self._drops["part-alone"] += 1
        elif len(self._kept) >= MOST_KEPT:
            self._give_up(next(iter(self._kept)))
        self._kept[part.identifier] = _Kept(part, now + LONGEST_WAIT)
        return None

    def _forget(self, identifier: int) -> None:
        """The oldest, when this one is of a packet much later."""
        while self._kept and (identifier - (oldest := next(iter(self._kept)))) & MAX_IDENTIFIER in BEHIND:
            self._give_up(oldest)

    def _give_up(self, identifier: int) -> None:
        del self._kept[identifier]
        self._drops["part-alone"] += 1


def _fit(one: Part, other: Part) -> bool:
    return one.second != other.second and one.total == other.total == len(one.data) + len(other.data)
