"""How often an end acknowledges what asks for it (RFC 9000 §13.2.2): sans-IO.

A browser acknowledges every second packet at once, after a hundred packets every tenth, and what is less after 25 ms,
later after a quarter of the round trip. Values of a browser are in its fingerprint; a data plane has ``BROWSER``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_GRANULARITY: Final = 0.001


class AckRule(NamedTuple):
    """Every ``every``-th packet at once, others after ``delay`` seconds. From packet ``later_from`` on every
    ``later_every``-th, and after ``later_round_trips`` of a round trip if that is less."""

    every: int
    delay: float
    later_from: int
    later_every: int
    later_round_trips: float


#: As ``qre/quic/data`` has it.
BROWSER: Final = AckRule(every=2, delay=0.025, later_from=100, later_every=10, later_round_trips=0.25)


class AckPolicy:
    """Counts packets that ask for an ACK; ``received`` of them are counted already."""

    __slots__ = ("received", "rule", "waiting")

    def __init__(self, rule: AckRule, received: int = 0) -> None:
        self.rule = rule
        self.received = received
        self.waiting = 0  # since the last ACK

    @property
    def every(self) -> int:
        """The number of packets that are acknowledged together."""
        return self.rule.later_every if self.received > self.rule.later_from else self.rule.every

    def arrived(self, count: int) -> int:
        """So many packets have arrived together: how many ACKs are due at once."""
        self.received += count
        due, self.waiting = divmod(self.waiting + count, self.every)
        return due

    def sent(self) -> None:
        """An ACK of everything has been sent."""
        self.waiting = 0

    def delay(self, round_trip: float) -> float:
        """How long one packet may wait (seconds)."""
        if self.received <= self.rule.later_from:
            return self.rule.delay
        return min(self.rule.delay, max(self.rule.later_round_trips * round_trip, _GRANULARITY))
