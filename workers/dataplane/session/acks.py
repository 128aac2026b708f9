"""When this end acknowledges, and what with: RFC 9000 §13.2 and §13.4.1."""

from __future__ import annotations

from collections.abc import Sequence

from qre.wire.frames import encode_ack

#: We tell no max_ack_delay and no ack_delay_exponent in our transport parameters, so the defaults hold (25 ms, 3).
ACK_DELAY = 0.020
_ACK_EXPONENT = 3
#: With traffic to ride on, an ACK goes along this often (seconds).
_PIGGYBACK_INTERVAL = 0.005
_NEVER = float("inf")


class Acks:
    """What is owed to the peer. Times in seconds."""

    __slots__ = ("_ecn", "_largest_at", "_sent", "_since")

    def __init__(self, now: float) -> None:
        self._since = _NEVER  # when the oldest unacknowledged ack-eliciting packet came
        self._sent = 0.0
        self._largest_at = now
        self._ecn = [0, 0, 0]  # ECT(0), ECT(1), CE: the order of an ACK frame

    def received(self, count: int, ecn: int, now: float) -> None:
        """New packets came, all with this ECN codepoint."""
        self._largest_at = now
        if ecn:
            self._ecn[(1, 0, 2)[ecn - 1]] += count

    def elicited(self, now: float) -> None:
        """One of them wants an acknowledgement."""
        self._since = min(self._since, now)

    def may_ride_along(self, now: float) -> bool:
        """Is one due that a packet with data can take along?"""
        return self._since != _NEVER and now - self._sent >= _PIGGYBACK_INTERVAL

    def deadline(self) -> float:
        """When one is due by itself."""
        return self._since + ACK_DELAY

    def take(self, ranges: Sequence[tuple[int, int]], now: float) -> bytes:
        """The ACK frame of these ranges, the highest first; nothing is owed any more."""
        self._since, self._sent = _NEVER, now
        delay = int(max(now - self._largest_at, 0.0) * 1e6) >> _ACK_EXPONENT
        return encode_ack(ranges, delay, self._ecn if any(self._ecn) else ())
