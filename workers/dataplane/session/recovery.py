"""Round-trip time, and the control frames in flight until their fate is known: RFC 9002 §5 and §6.

DATAGRAMs are never retransmitted, so no record of them is kept: only the times of batches (for the round-trip time),
and the few packets with control frames or a PING that must be answered.
"""

from __future__ import annotations

from collections import deque

from qre.errors import UntrustedInputError
from qre.wire.frames import Ack

#: Before the first sample. The handshake was answered, so this is less than RFC 9002's 333 ms.
INITIAL_RTT = 0.1
GRANULARITY = 0.001
#: A packet is lost when one sent this much later was acknowledged (RFC 9002 §6.1.1).
PACKET_THRESHOLD = 3
#: How often control frames are sent before they are given up.
MAX_TRIES = 12
MAX_CONTROLS = 64
_MAX_BACKOFF = 6


class Control:
    """Frames of one FrameSend (``request`` is its id), or of the data plane itself, such as a PING (``request``
    None)."""

    __slots__ = ("frames", "numbers", "request", "sent_at", "tries")

    def __init__(self, frames: bytes, request: int | None) -> None:
        self.frames = frames
        self.request = request
        self.numbers: list[int] = []
        self.sent_at = 0.0
        self.tries = 0


class Recovery:
    """What was sent and not yet acknowledged; ``max_ack_delay`` in seconds and ``exponent`` are the peer's, ``first``
    is the number of the first packet that is counted."""

    def __init__(self, max_ack_delay: float, exponent: int, first: int = 0) -> None:
        self._counted_from = first
        self.packets_acknowledged = 0  # later ones that fill a gap are not counted
        self.packets_skipped = 0  # numbers that no packet has
        #: Whether frames are sent again because time has passed; a client's are by another clock.
        self.repeats_in_time = True
        self.max_ack_delay = max_ack_delay
        self._scale = (1 << exponent) / 1e6
        self.smoothed = INITIAL_RTT
        self.variation = INITIAL_RTT / 2
        self._sampled = False
        self._minimum = 0.0
        self._sent: deque[tuple[int, float]] = deque(maxlen=256)  # (last number of a batch, when)
        self._first = 0  # the path's first packet
        self.largest_acked = -1
        self.largest_heard = -1  # likewise, of the path in use: not of a port that is tried
        self.controls: list[Control] = []

    def begin_path(self, first: int) -> None:
        """The peer has moved to another host: reset all estimates (RFC 9000 §9.4). Packets before number ``first``
        are not samples of the new path."""
        self.smoothed, self.variation = INITIAL_RTT, INITIAL_RTT / 2
        self._sampled = False
        self._sent.clear()
        self._first = first

    @property
    def round_trip(self) -> float:
        """The shortest so far, or a guess before the first sample (seconds)."""
        return self._minimum if self._sampled else self.smoothed

    @property
    def pto(self) -> float:
        """The probe timeout without backoff, RFC 9002 §6.2.1."""
        return self.smoothed + max(4 * self.variation, GRANULARITY) + self.max_ack_delay

    def sent_batch(self, last: int, now: float) -> None:
        """Packets up to number ``last`` went out at ``now``; they are measured, not retransmitted."""
        self._sent.append((last, now))

    def sent_control(self, control: Control, number: int, now: float) -> None:
        """Packet ``number`` carried the frames of ``control``, which are sent again until acknowledged."""
        if control not in self.controls:
            self.controls.append(control)
        control.numbers.append(number)
        control.sent_at = now
        control.tries += 1
        self._sent.append((number, now))

    def acknowledged(self, ack: Ack, heard: int, next_number: int, now: float) -> list[Control]:
        """Take an ACK; the controls whose frames have arrived. ``heard``: the largest acknowledged number of the path
        in use, -1: none is. Raises UntrustedInputError for numbers never sent."""
        largest = ack.ranges[0][1]
        if largest >= next_number:
            raise UntrustedInputError("ACK frame", "it acknowledges a packet that was never sent")
        if largest > self.largest_acked:
            above = max(self.largest_acked + 1, self._counted_from)
            self.packets_acknowledged += sum(
                last - max(first, above) + 1 for first, last in ack.ranges if last >= above
            )
            self.largest_acked = largest
        if heard > self.largest_heard:
            self.largest_heard = heard
            if heard >= self._first:
                self._sample(heard, ack.delay * self._scale, now)
        if not self.controls:
            return []
        done = [
            control
            for control in self.controls
            if any(first <= number <= last for number in control.numbers for first, last in ack.ranges)
        ]
        for control in done:
            self.controls.remove(control)
        return done

    def _sample(self, largest: int, delay: float, now: float) -> None:
        sent = self._sent
        while sent and sent[0][0] < largest:
            sent.popleft()
        if not sent:
            return
        latest = max(now - sent[0][1], 0.0)
        if sent[0][0] == largest:
            sent.popleft()
        if not self._sampled:
            self._sampled, self._minimum = True, latest
            self.smoothed, self.variation = latest, latest / 2
            return
        self._minimum = min(self._minimum, latest)
        adjusted = latest - min(delay, self.max_ack_delay)
        if adjusted < self._minimum:
            adjusted = latest
        self.variation += (abs(self.smoothed - adjusted) - self.variation) / 4
        self.smoothed += (adjusted - self.smoothed) / 8

    @property
    def packets_lost(self) -> int:
        """How many packets below the largest acknowledged one have not been acknowledged (RFC 9002 §6.1.1)."""
        done = self.packets_acknowledged + self.packets_skipped
        return max(self.largest_acked + 1 - self._counted_from - done, 0)

    @property
    def has_room(self) -> bool:
        """Whether more control frames may be in flight."""
        return len(self.controls) < MAX_CONTROLS

    def _deadline_of(self, control: Control) -> float:
        if control.numbers[-1] <= self.largest_acked - PACKET_THRESHOLD:
            return control.sent_at
        if not self.repeats_in_time:
            return float("inf")
        return control.sent_at + self.pto * (1 << min(control.tries - 1, _MAX_BACKOFF))

    def deadline(self) -> float | None:
        """When to call ``due``."""
        return min(map(self._deadline_of, self.controls)) if self.controls else None

    def due(self, now: float) -> tuple[list[Control], list[Control]]:
        """The controls to send again, and those that are given up (and forgotten)."""
        late = [control for control in self.controls if self._deadline_of(control) <= now]
        lost = [control for control in late if control.request is not None and control.tries >= MAX_TRIES]
        for control in lost:
            self.controls.remove(control)
        return [control for control in late if control not in lost], lost
