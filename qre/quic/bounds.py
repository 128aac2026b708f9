"""Bounds on the memory and time that one peer can cost a handshake. A peer that exceeds one loses the connection.

aioquic's flow control bounds the data that a peer may have outstanding, but not the cost within these windows: each
frame walks a list of ranges and copies a buffer, and one byte of a header block can decode to kilobytes. These bounds
keep the cost of a datagram to a small multiple of its length.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from qre.errors import PeerError

#: Gaps that loss and reordering may leave in the data of one stream, or of one encryption level of TLS.
MAX_GAPS: Final = 32
#: The longest SETTINGS or MAX_PUSH_ID frame (bytes); a browser's SETTINGS have 40.
MAX_CONTROL_FRAME: Final = 1024


class Bound(enum.StrEnum):
    """What exceeded its bound, as the error names it."""

    GAPS = "gaps in a stream"
    PACKETS = "packets"
    INITIALS = "Initials after a hello"
    CPU = "milliseconds of CPU for one handshake"
    CRYPTO = "bytes of TLS messages"
    STREAMS = "bytes in streams"
    FRAME = "bytes in one HTTP/3 frame"
    FRAMES = "HTTP/3 frames"
    UNIDIRECTIONAL = "bytes in unidirectional streams"
    TICKETS = "session tickets"
    FIELDS = "bytes of header fields"
    CAPSULES = "capsules before the expected one"
    REQUESTS = "requests"
    LIFETIME = "seconds without a session"
    UNPROVEN = "answers to an unproven address"
    HANDSHAKES = "unconfirmed handshakes of one short id"


class OverBoundError(PeerError):
    """The peer exceeded ``bound``."""

    def __init__(self, bound: Bound) -> None:
        super().__init__("handshake", f"too many {bound}")
        self.bound = bound


@dataclass(frozen=True)
class Bounds:
    """The bounds of one end, in bytes. ``crypto``: TLS messages in total; ``streams``: all streams in total until the
    hand-over; ``header_block``: one HEADERS frame; ``field_section``: its decoded size (RFC 9114 §4.2.2),
    of which all together may have three times as much.
    ``packets``: how many that only the peer can have made; ``initials``: how many are read after the hello, which
    anybody can have made who saw that: an honest end sends a few, and repeats some. Of HTTP/3: ``frames``, how many
    in total, as the smallest has two bytes; ``unidirectional``: bytes of the peer's streams of that kind."""

    crypto: int
    streams: int
    header_block: int
    field_section: int
    packets: int
    initials: int
    frames: int
    unidirectional: int


#: Our client sends a hello of 1,800 bytes, Finished, SETTINGS, one request of 600 bytes and one capsule.
SERVER: Final = Bounds(
    crypto=16_384,
    streams=16_384,
    header_block=4096,
    field_section=16_384,
    packets=1000,
    initials=64,
    frames=512,
    unidirectional=16_384,
)
#: A site sends a certificate chain, and a visit reads up to 4 MiB of its page (``http3.MAX_PAGE``), in DATA frames of
#: 1 KB at least on average. What it says on its other streams has the size of the dynamic table.
CLIENT: Final = Bounds(
    crypto=131_072,
    streams=5 << 20,
    header_block=65_536,
    field_section=262_144,
    packets=20_000,
    initials=64,
    frames=4096,
    unidirectional=131_072,
)
#: Sites send two, or four.
MAX_TICKETS: Final = 32
