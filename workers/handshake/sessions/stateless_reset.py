"""Stateless resets for this server's connection IDs that have no session (RFC 9000 §10.3).

A client whose server was restarted learns at once that its session is gone, and reconnects. To anyone else a reset
looks like any short-header packet. It is shorter than the packet that it answers, so two ends cannot answer each
other forever.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.reality.cid import reset_token
from qre.wire.packet import FIXED

#: RFC 9000 §10.3: at least 5 unpredictable bytes, and the token.
SHORTEST = 21
#: A packet of up to this length gets an answer one byte shorter, a longer one an answer of about this length.
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
