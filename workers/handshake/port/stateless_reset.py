"""Stateless resets for connection IDs of ours that nobody remembers (RFC 9000 §10.3).

A client whose server was restarted learns at once that its session is gone, and reconnects. To everybody else a reset
looks like any short-header packet. It is never as long as what it answers, so two ends cannot answer each other for
ever.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.reality.cid import reset_token
from qre.wire.packet import FIXED

#: RFC 9000 §10.3: at least 5 bytes that look random, and the token.
SHORTEST = 21
#: Answers to packets up to this long are one byte shorter than what they answer; others about this long.
_ORDINARY = 43
_SPREAD = 16


def stateless_reset(key: bytes, cid: bytes, length: int, random: Callable[[int], bytes]) -> bytes | None:
    """The answer to a packet of ``length`` bytes for ``cid``; None when it is too short to be answered."""
    size = min(length - 1, _ORDINARY - 1 + random(1)[0] % _SPREAD)
    if length <= _ORDINARY:
        size = length - 1
    if size < SHORTEST:
        return None
    body = random(size - 16)
    return bytes([body[0] & 0x3F | FIXED]) + body[1:] + reset_token(key, cid)
