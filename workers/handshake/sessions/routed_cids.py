"""The routed connection IDs of this server: make, recognise and reset them.

Binds ``qre.reality.cid`` to one key, one length and one source of randomness.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.ends import LIKE_DEST
from qre.reality.cid import cid_key, is_ours, reset_token, routed_cid
from qre.wire.packet import is_long
from qre.workers.handshake.sessions.stateless_reset import stateless_reset


class RoutedCids:
    """``private_key`` is RealityPrivateKey; ``length`` is 17 to 20 bytes, or LIKE_DEST. Dest's own are not recognised
    and never reset: what is not of a live session goes to Dest."""

    def __init__(self, private_key: bytes, length: int, random: Callable[[int], bytes]) -> None:
        self._key = cid_key(private_key)
        self._length = length
        self._random = random

    def like(self, routed: bytes) -> bytes:
        """One more for the session that is reached by ``routed``."""
        if self._length == LIKE_DEST:
            return self._random(len(routed))
        return routed_cid(self._key, self._random, self._length)

    def reset_token(self, cid: bytes) -> bytes:
        """The stateless reset token of ``cid``, 16 bytes (RFC 9000 §10.3)."""
        return reset_token(self._key, cid)

    def of_datagram(self, data: bytes) -> bytes | None:
        """The destination CID of a short-header packet; None when this server did not make it."""
        if self._length == LIKE_DEST or len(data) <= self._length or is_long(data):
            return None
        cid = data[1 : 1 + self._length]
        return cid if is_ours(self._key, cid) else None

    def reset(self, cid: bytes, length: int) -> bytes | None:
        """The stateless reset that answers a packet of ``length`` bytes; None when it is too short for one."""
        return stateless_reset(self._key, cid, length, self._random)
