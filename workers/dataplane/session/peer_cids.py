"""The connection IDs that the peer has issued, and the retirements owed for them: RFC 9000 §5.1, §19.15 and §19.16.

A few at most, each in use on one path, spare, or retired; like ``kmod/peercids.c``::

    spare ── take() ──► used ── retire() ──► owed ── pay() ──► gone
      └─────── Retire Prior To ────────────►─┘

One that is in use while the peer retires it (``wanted_back``) stays in use until its path has another.
"""

from __future__ import annotations

from typing import Final

from qre.wire.frames import (
    CONNECTION_ID_LIMIT_ERROR,
    PROTOCOL_VIOLATION,
    NewConnectionId,
    RetireConnectionId,
    encode_frame,
)

#: The most at a time; active_connection_id_limit of our handshakes is 2.
MAX_HELD: Final = 8
MAX_OWED: Final = 16


class PeerCid:
    """One connection ID. ``token``: its stateless reset token; None: unknown, as the first one's may be."""

    __slots__ = ("cid", "sequence", "token", "used")

    def __init__(self, cid: bytes, sequence: int, token: bytes | None, *, used: bool = False) -> None:
        self.cid = cid
        self.sequence = sequence
        self.token = token
        self.used = used

    def contradicts(self, frame: NewConnectionId) -> bool:
        """Whether only sequence number or CID is the same, or the token differs (§19.15)."""
        if (self.sequence, self.cid) != (frame.sequence, frame.cid):
            return True
        return self.token is not None and self.token != frame.reset_token


class PeerCids:
    """``held`` holds those that are spare or used, ``owed`` sequence numbers to be retired."""

    __slots__ = ("held", "owed", "retire_prior_to")

    def __init__(self, first: PeerCid) -> None:
        self.held = [first]
        self.owed: list[int] = []
        self.retire_prior_to = 0  # the highest Retire Prior To so far

    def issued(self, frame: NewConnectionId) -> int:
        """Take the frame; returns 0 or the transport error (§5.1.1, §5.1.2)."""
        known = [one for one in self.held if one.sequence == frame.sequence or one.cid == frame.cid]
        if any(one.contradicts(frame) for one in known):
            return PROTOCOL_VIOLATION
        self.retire_prior_to = max(self.retire_prior_to, frame.retire_prior_to)
        for one in [one for one in self.held if not one.used and self.wanted_back(one)]:
            if not self.retire(one):
                return CONNECTION_ID_LIMIT_ERROR
        if frame.sequence in self.owed:
            return 0
        for one in known:  # a repeat, or the first one, whose token may be news
            one.token = frame.reset_token
            return 0
        if frame.sequence < self.retire_prior_to:
            return 0 if self._owe(frame.sequence) else CONNECTION_ID_LIMIT_ERROR
        if len(self.held) >= MAX_HELD:
            return CONNECTION_ID_LIMIT_ERROR
        self.held.append(PeerCid(frame.cid, frame.sequence, frame.reset_token))
        return 0

    def take(self, size: int) -> PeerCid | None:
        """A spare one for a new path, the oldest of those of ``size`` bytes if there is one; None: none is spare."""
        spare = [one for one in self.held if not one.used]
        if not spare:
            return None
        best = min(spare, key=lambda one: (len(one.cid) != size, one.sequence))
        best.used = True
        return best

    def wanted_back(self, one: PeerCid) -> bool:
        """Whether Retire Prior To covers it (§19.15)."""
        return one.sequence < self.retire_prior_to

    def retire(self, one: PeerCid) -> bool:
        """Stop using it and owe its sequence number. False: too many are owed."""
        self.held.remove(one)
        return self._owe(one.sequence)

    def _owe(self, sequence: int) -> bool:
        if sequence not in self.owed:
            if len(self.owed) >= MAX_OWED:
                return False
            self.owed.append(sequence)
        return True

    def pay(self, room: int) -> bytes:
        """RETIRE_CONNECTION_ID frames for the owed ones, as many as fit, which are then no longer owed."""
        frames = b""
        while self.owed:
            frame = encode_frame(RetireConnectionId(self.owed[0]))
            if len(frames) + len(frame) > room:
                break
            frames += frame
            del self.owed[0]
        return frames
