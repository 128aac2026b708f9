"""What one peer may make a handshake hold, or do. Whoever goes beyond has no honest reason, and the connection ends.

aioquic bounds what a peer may have outstanding, as flow control does. Inside these windows the cost is not bounded: a
list of ranges is walked for each frame, a buffer is copied for each frame, a field of one byte in a header block can
stand for kilobytes. These bounds keep any one datagram to a small multiple of its own length, in time and in memory.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from qre.errors import PeerError

#: Holes that loss and reordering may leave in what one stream, or one level of TLS, has received.
MAX_GAPS: Final = 32
#: SETTINGS and MAX_PUSH_ID (bytes). A browser's SETTINGS take 40.
MAX_CONTROL_FRAME: Final = 1024


class Bound(enum.StrEnum):
    """What there was too much of."""

    GAPS = "holes in a stream"
    CRYPTO = "bytes of TLS"
    STREAMS = "bytes of streams"
    FRAME = "bytes in one HTTP/3 frame"
    FIELDS = "bytes of header fields"
    CAPSULES = "capsules before the one that counts"
    REQUESTS = "requests"
    LIFETIME = "seconds without a session"
    UNPROVEN = "answers to an unproven address"
    HANDSHAKES = "unconfirmed handshakes of one short id"


class OverBoundError(PeerError):
    """The peer went beyond ``bound``."""

    def __init__(self, bound: Bound) -> None:
        super().__init__("handshake", f"too many {bound}")
        self.bound = bound


@dataclass(frozen=True)
class Bounds:
    """Of one end, in bytes. ``crypto``: of TLS in all; ``streams``: of all streams together, until the hand-over;
    ``header_block``: one HEADERS frame; ``field_section``: what it stands for (RFC 9114 §4.2.2)."""

    crypto: int
    streams: int
    header_block: int
    field_section: int


#: Our client sends a hello of 1,800 bytes, Finished, SETTINGS, one request of 600 bytes and one capsule.
SERVER: Final = Bounds(crypto=16_384, streams=16_384, header_block=4096, field_section=16_384)
#: A site sends a chain of certificates, and a visit reads up to 4 MiB of its page (``http3.MAX_PAGE``).
CLIENT: Final = Bounds(crypto=131_072, streams=5 << 20, header_block=65_536, field_section=262_144)
