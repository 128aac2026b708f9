"""A peer that speaks from another address: path validation within RFC 9000 §8.1, §8.2 and §9.3 (server side).

One candidate address at a time. Nothing but PATH_CHALLENGE and PATH_RESPONSE is sent to it until it has answered, and
never more than three times the bytes that came from it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from qre.wire.frames import PathChallenge, PathResponse, encode_frame

Address = tuple[str, int]
#: Datagrams with PATH_CHALLENGE or PATH_RESPONSE are padded to this (§8.2.1), as far as the limit permits.
PADDED = 1200
_MAX_CHALLENGES = 4
_NEVER = float("inf")


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


#: Puts a packet with frames, padded to a size, on its way to an address, and says how long it is.
Send = Callable[[bytes, Address, int], int]


class Moves:
    """``overhead`` is what a packet has around its frames, ``random`` gives bytes. Whoever sends is told at each call
    and never kept: a session that is over must go at once, with its keys."""

    __slots__ = ("_candidate", "_overhead", "_random")

    def __init__(self, overhead: int, random: Callable[[int], bytes]) -> None:
        self._overhead = overhead
        self._random = random
        self._candidate: Candidate | None = None

    def challenged(self, data: bytes, source: Address, is_peer: bool, send: Send) -> None:
        """Answer a PATH_CHALLENGE, to where it came from."""
        frame = encode_frame(PathResponse(data))
        candidate = self._candidate
        if is_peer:
            send(frame, source, PADDED)
        elif candidate is not None and candidate.address == source:
            self._send_probe(candidate, frame, send)

    def came_from(self, source: Address, size: int, newest: bool, now: float, pto: float, send: Send) -> None:
        """``size`` bytes of authentic packets came from an address that is not the peer's; ``newest``: with the
        highest number so far, in a packet that was not for probing alone."""
        candidate = self._candidate
        if candidate is None or (candidate.address != source and newest):
            candidate = self._candidate = Candidate(source, now, pto)
        if candidate.address != source:
            return
        candidate.received += size
        if newest and not candidate.challenges:
            self._challenge(candidate, now, pto, send)

    def answered(self, data: bytes) -> Address | None:
        """The address that a PATH_RESPONSE has proved to be the peer's; None when it proves nothing."""
        candidate = self._candidate
        if candidate is None or not candidate.answered_by(data):
            return None
        self._candidate = None
        return candidate.address

    def deadline(self) -> float:
        candidate = self._candidate
        return _NEVER if candidate is None else min(candidate.next_at, candidate.expires)

    def handle_timer(self, now: float, pto: float, send: Send) -> None:
        candidate = self._candidate
        if candidate is None:
            return
        if now >= candidate.expires:
            self._candidate = None
        elif now >= candidate.next_at:
            self._challenge(candidate, now, pto, send)

    def _challenge(self, candidate: Candidate, now: float, pto: float, send: Send) -> None:
        frame = candidate.challenge(self._random(8), now, pto)
        if frame is not None:
            self._send_probe(candidate, frame, send)

    def _send_probe(self, candidate: Candidate, frame: bytes, send: Send) -> None:
        bare = len(frame) + self._overhead
        if candidate.allowance() >= bare:
            candidate.sent += send(frame, candidate.address, min(PADDED, candidate.allowance()))
