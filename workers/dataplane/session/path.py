"""A peer that speaks from another address: path validation within RFC 9000 §8.1, §8.2 and §9.3 (server side).

One candidate address at a time. Nothing but PATH_CHALLENGE and PATH_RESPONSE is sent to it until it has answered, and
never more than three times the bytes that came from it.
"""

from __future__ import annotations

import hmac

from qre.wire.frames import PathChallenge, encode_frame

Address = tuple[str, int]
#: Datagrams with PATH_CHALLENGE or PATH_RESPONSE are padded to this (§8.2.1), as far as the limit permits.
PADDED = 1200
_MAX_CHALLENGES = 4


class Candidate:
    """An address that is being validated."""

    __slots__ = ("address", "challenges", "expires", "next_at", "received", "sent")

    def __init__(self, address: Address, now: float, pto: float) -> None:
        self.address = address
        self.received = 0
        self.sent = 0
        self.challenges: list[bytes] = []
        self.next_at = now
        self.expires = now + 3 * max(pto, 0.333)

    def allowance(self) -> int:
        """Bytes that may be sent there now."""
        return 3 * self.received - self.sent

    def challenge(self, data: bytes, now: float, pto: float) -> bytes | None:
        """The PATH_CHALLENGE frame to send now; None when enough of them were sent."""
        self.next_at = now + pto * (1 << len(self.challenges))
        if len(self.challenges) >= _MAX_CHALLENGES:
            self.next_at = self.expires
            return None
        self.challenges.append(data)
        return encode_frame(PathChallenge(data))

    def answered_by(self, data: bytes) -> bool:
        return any(hmac.compare_digest(data, challenge) for challenge in self.challenges)
