"""An address that is being validated: RFC 9000 §8.1, §8.2 and §9.3 (server side).

Nothing but PATH_CHALLENGE and PATH_RESPONSE is sent to it until it has answered, and never more than three times the
bytes that came from it.
"""

from __future__ import annotations

import hmac

from qre.wire.frames import PathChallenge, encode_frame
from qre.workers.dataplane.session.peer_cids import PeerCid

Address = tuple[str, int]
#: Datagrams with PATH_CHALLENGE or PATH_RESPONSE are padded to this (§8.2.1), as far as the limit permits.
PADDED = 1200
_MAX_CHALLENGES = 4
#: Validation is given up after three PTO, but not before this (seconds).
_LIFE = 1.0


class Challenges:
    """The PATH_CHALLENGEs that were sent to one address."""

    __slots__ = ("_sent",)

    def __init__(self) -> None:
        self._sent: list[bytes] = []

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def enough(self) -> bool:
        """Whether no further PATH_CHALLENGE may be sent."""
        return len(self._sent) >= _MAX_CHALLENGES

    def frame(self, data: bytes) -> bytes:
        """The frame of one more."""
        self._sent.append(data)
        return encode_frame(PathChallenge(data))

    def answered_by(self, data: bytes) -> bool:
        """Whether PATH_RESPONSE holds the data of one of them; in constant time."""
        return sum(hmac.compare_digest(data, challenge) for challenge in self._sent) > 0


class Candidate:
    """An address that the peer has sent from, and the connection ID for packets to it."""

    __slots__ = (
        "address",
        "before",
        "before_answered",
        "challenges",
        "cid",
        "expires",
        "next_at",
        "received",
        "sent",
    )

    def __init__(self, address: Address, cid: PeerCid, now: float, pto: float) -> None:
        self.address = address
        self.cid = cid
        self.received = self.sent = 0
        self.challenges = Challenges()
        self.before = Challenges()  # those to the address in use, which may still be the peer's
        self.before_answered = False
        self.expires = now + max(3 * pto, _LIFE)
        self.next_at = self.expires  # a mere probe is only answered

    def allowance(self) -> int:
        """Bytes that may be sent there now (§8.1)."""
        return 3 * self.received - self.sent

    def challenge(self, data: bytes, now: float, pto: float) -> bytes:
        """The PATH_CHALLENGE frame to send now; empty when enough of them were sent."""
        if self.challenges.enough:
            self.next_at = self.expires
            return b""
        self.next_at = now + pto * (1 << len(self.challenges))
        return self.challenges.frame(data)
