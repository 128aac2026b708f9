"""When a client that hears nothing gives a path up, and with which words: of both data planes. Sans-IO.

The times are those of Chromium 156, measured and computed as its QUIC library does: a connection is over at the end
of what seven timeouts would be (RFC 9002 §7.6 of older drafts: two tail loss probes, and five doubling timeouts of at
least 200 ms), 6.4 s for a short round trip. Shortly before, one more repeat was seen in each of the captures.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from qre.wire.frames import ConnectionClose, encode_frame

#: Probe timeouts until the path is taken for a bad one.
DEGRADED: Final = 4
_TAIL_PROBES: Final = 2
_TIMEOUTS: Final = 5
#: The shortest such timeout, and the shortest time between tail loss probes while more than one packet is under way
#: (seconds); of a single one it is half of the former and one and a half round trips.
_SHORTEST_TIMEOUT: Final = 0.2
_SHORTEST_PROBE: Final = 0.01
#: The last repeat is so much earlier than the end (seconds): 0.79 to 0.83 in four of four captures.
LAST_REPEAT: Final = 0.81
#: What a browser says in its last packet. With an ACK that is 66 bytes and more for a connection ID of four.
FAREWELL: Final = encode_frame(ConnectionClose(0, application=False, reason=b"85:Network blackhole detected"))


class RoundTrip(NamedTuple):
    """What is known of the path (seconds): RFC 9002 §5.3 and §6.2.1."""

    smoothed: float
    variation: float
    pto: float


def gives_up_after(round_trip: RoundTrip, *, several: bool) -> float:
    """For how long nothing may be acknowledged (seconds); ``several``: more than one packet was under way at the
    beginning."""
    smoothed = round_trip.smoothed
    alone = 1.5 * smoothed + _SHORTEST_TIMEOUT / 2
    probe = max(2 * smoothed, _SHORTEST_PROBE if several else alone)
    timeout = max(smoothed + 4 * round_trip.variation, _SHORTEST_TIMEOUT)
    whole = _TAIL_PROBES * probe + ((1 << _TIMEOUTS) - 1) * timeout
    return max(whole, (DEGRADED + 2) * round_trip.pto)
