"""When a client acknowledges, and with what, as a browser does (RFC 9000 §13.2, §13.4): sans-IO.

1-RTT packets by ``qre.wire.ack_policy``, those of the handshake at the second or after a millisecond; a packet with a
new gap behind it at once. ACK frames of 1-RTT packets have ECN counts as soon as one packet came marked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace

from qre.quic.client.fingerprint import AckShape
from qre.wire.ack_policy import AckPolicy, AckRule
from qre.wire.frames import encode_ack

#: ECN codepoints in the order in which an ACK frame counts them: ECT(0), ECT(1), CE.
_COUNTED: Final = (2, 1, 3)
#: A gap is new while so many packets at most have come behind it.
_NEW_GAP: Final = 4
#: Ranges of one frame, at most.
_MOST_RANGES: Final = 32
#: Microseconds in a unit of the delay: our ack_delay_exponent is the default (RFC 9000 §18.2).
_DELAY_UNIT: Final = 8


class Acknowledging:
    """Of one connection. ``shape`` is the browser's."""

    def __init__(self, shape: AckShape) -> None:
        self._shape = shape
        delay = shape.delay_ms / 1000
        rule = AckRule(shape.every, delay, shape.later_from, shape.later_every, shape.later_round_trips)
        self._policies: defaultdict[tls.Epoch, AckPolicy] = defaultdict(lambda: AckPolicy(rule))
        self._ecn = [0, 0, 0]

    def marked(self, ecn: int) -> None:
        """A 1-RTT packet has come in a datagram with this ECN codepoint."""
        if ecn in _COUNTED:
            self._ecn[_COUNTED.index(ecn)] += 1

    def wants(self, epoch: tls.Epoch, space: QuicPacketSpace, round_trip: float, now: float) -> None:
        """A packet has come that asks for an ACK: set when it is due (``ack_at`` of the space)."""
        policy = self._policies[epoch]
        application = epoch is tls.Epoch.ONE_RTT
        at_once = policy.arrived(1)
        delay = policy.delay(round_trip) if application else self._shape.handshake_delay_ms / 1000
        due = now if at_once else now + delay
        space.ack_at = due if space.ack_at is None else min(space.ack_at, due)

    def gaps(self, space: QuicPacketSpace, now: float) -> None:
        """All packets of a datagram are read: one with a new gap behind it is acknowledged at once."""
        ranges = list(space.ack_queue)
        if space.ack_at is not None and len(ranges) > 1 and len(ranges[-1]) <= _NEW_GAP:
            space.ack_at = min(space.ack_at, now)

    def write(self, builder: QuicPacketBuilder, space: Any, now: float, delivered: Callable[..., None]) -> None:
        """The ACK frame of the space; ``delivered`` is stock's handler of its fate."""
        epoch = tls.Epoch.ONE_RTT if space.is_application_data else None
        delay = int((now - space.largest_received_time) * 1e6) // _DELAY_UNIT if epoch else 0
        ranges = [(part.start, part.stop - 1) for part in reversed(list(space.ack_queue)[-_MOST_RANGES:])]
        ecn = self._ecn if epoch is not None and any(self._ecn) else ()
        frame = Buffer(data=encode_ack(ranges, delay, ecn))
        kind = QuicFrameType(frame.pull_uint_var())
        rest = frame.pull_bytes(frame.capacity - frame.tell())
        buf = builder.start_frame(
            kind, capacity=1 + len(rest), handler=delivered, handler_args=(space, space.largest_received_packet)
        )
        buf.push_bytes(rest)
        space.ack_at = None

    def sent(self, epoch: tls.Epoch) -> None:
        """An ACK of this epoch has been written."""
        self._policies[epoch].sent()
