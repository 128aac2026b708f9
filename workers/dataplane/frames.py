"""The frames that a data plane owns: RFC 9000 §19, RFC 9221 §4.

Reads the payload of an authenticated packet: its own frames apart, the others as whole bytes for the handshake
worker. Writes ACK and CONNECTION_CLOSE. The hot path handles the plain DATAGRAM itself and never comes here. It must
never read past the end of the payload, nor accept a frame that RFC 9000 forbids in a 1-RTT packet's syntax.
"""

from __future__ import annotations

from collections.abc import Sequence

from qre.errors import UntrustedInputError

#: DATAGRAM frame without length, quarter stream id 0, context id 0 (RFC 9221 §4, RFC 9297 §2.1, RFC 9484 §6).
DATAGRAM_HEAD = b"\x30\x00\x00"
PING = b"\x01"
H3_NO_ERROR = 0x100
FRAME_ENCODING_ERROR = 0x07
PROTOCOL_VIOLATION = 0x0A
KEY_UPDATE_ERROR = 0x0E
#: Probing frames, RFC 9000 §9.1: PADDING, NEW_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE.
_PROBING = frozenset({0x00, 0x18, 0x1A, 0x1B})
#: Frames that are not ack-eliciting, RFC 9000 §13.2: PADDING, ACK, CONNECTION_CLOSE.
_NOT_ELICITING = frozenset({0x00, 0x02, 0x03, 0x1C, 0x1D})
#: Varints that follow the type of the frames that hold nothing else.
_VARINTS_ONLY = {
    0x04: 3,  # RESET_STREAM
    0x05: 2,  # STOP_SENDING
    0x10: 1,  # MAX_DATA
    0x11: 2,  # MAX_STREAM_DATA
    0x12: 1,  # MAX_STREAMS
    0x13: 1,
    0x14: 1,  # DATA_BLOCKED
    0x15: 2,  # STREAM_DATA_BLOCKED
    0x16: 1,  # STREAMS_BLOCKED
    0x17: 1,
    0x19: 1,  # RETIRE_CONNECTION_ID
    0x1E: 0,  # HANDSHAKE_DONE
}
_MAX_ACK_RANGES_READ = 512


def varint(value: int) -> bytes:
    """RFC 9000 §16."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def read_varint_untrusted(data: bytes, at: int) -> tuple[int, int]:
    """The value at ``at``, and where it ends."""
    if at >= len(data):
        raise UntrustedInputError("frame", "it ends inside a number")
    size = 1 << (data[at] >> 6)
    end = at + size
    if end > len(data):
        raise UntrustedInputError("frame", "it ends inside a number")
    return int.from_bytes(data[at:end], "big") & (1 << 8 * size - 2) - 1, end


class Ack:
    """An ACK frame: ``ranges`` descending as ``(first, last)``, the delay in units of the sender's exponent."""

    __slots__ = ("delay", "ranges")

    def __init__(self, delay: int, ranges: list[tuple[int, int]]) -> None:
        self.delay = delay
        self.ranges = ranges


class Frames:
    """What one packet carried."""

    __slots__ = (
        "acks",
        "challenges",
        "close",
        "datagrams",
        "eliciting",
        "passed",
        "probing_only",
        "responses",
        "unknown_datagrams",
    )

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []  # each is DATAGRAM_HEAD and an IP packet
        self.unknown_datagrams = 0  # of another stream or context
        self.acks: list[Ack] = []
        self.challenges: list[bytes] = []
        self.responses: list[bytes] = []
        self.close: int | None = None  # the error code
        self.passed: list[bytes] = []  # whole frames for the handshake worker
        self.eliciting = False
        self.probing_only = True


def parse_frames_untrusted(data: bytes) -> Frames:
    """Read a packet's payload. Raises UntrustedInputError when it is no sequence of QUIC frames."""
    found = Frames()
    at, end = 0, len(data)
    if not end:
        raise UntrustedInputError("packet", "it holds no frame")
    while at < end:
        start = at
        kind = data[at]
        at += 1
        if kind == 0x00:
            rest = data[at:]
            at = end - len(rest.lstrip(b"\0"))
            continue
        if kind not in _PROBING:
            found.probing_only = False
        if kind not in _NOT_ELICITING:
            found.eliciting = True
        if kind == 0x01:
            continue
        if kind in {0x30, 0x31}:
            at = _datagram_untrusted(data, at, kind, found)
        elif kind in {0x02, 0x03}:
            at = _ack_untrusted(data, at, kind, found)
        elif kind in {0x1A, 0x1B}:
            at += 8
            (found.challenges if kind == 0x1A else found.responses).append(_slice_untrusted(data, at - 8, at))
        elif kind in {0x1C, 0x1D}:
            found.close, at = read_varint_untrusted(data, at)
            if kind == 0x1C:
                _, at = read_varint_untrusted(data, at)
            size, at = read_varint_untrusted(data, at)
            at += size
        else:
            at = _skip_untrusted(data, at, kind)
            found.passed.append(_slice_untrusted(data, start, at))
        if at > end:
            raise UntrustedInputError("frame", "it ends beyond its packet")
    return found


def _slice_untrusted(data: bytes, start: int, end: int) -> bytes:
    if end > len(data):
        raise UntrustedInputError("frame", "it ends beyond its packet")
    return data[start:end]


def _datagram_untrusted(data: bytes, at: int, kind: int, found: Frames) -> int:
    end = len(data)
    if kind == 0x31:
        size, at = read_varint_untrusted(data, at)
        end = at + size
    content = _slice_untrusted(data, at, end)
    # Quarter stream id 0 and context 0 in their shortest form; longer forms are legal, and read below.
    if content[:2] == b"\0\0":
        found.datagrams.append(b"\x30" + content)
        return end
    quarter, inner = read_varint_untrusted(content, 0)
    context, inner = read_varint_untrusted(content, inner)
    if quarter == 0 and context == 0:
        found.datagrams.append(DATAGRAM_HEAD + content[inner:])
    else:
        found.unknown_datagrams += 1
    return end


def _ack_untrusted(data: bytes, at: int, kind: int, found: Frames) -> int:
    largest, at = read_varint_untrusted(data, at)
    delay, at = read_varint_untrusted(data, at)
    count, at = read_varint_untrusted(data, at)
    size, at = read_varint_untrusted(data, at)
    if count > _MAX_ACK_RANGES_READ or size > largest:
        raise UntrustedInputError("ACK frame", "its ranges are impossible")
    first = largest - size
    ranges = [(first, largest)]
    for _ in range(count):
        gap, at = read_varint_untrusted(data, at)
        size, at = read_varint_untrusted(data, at)
        last = first - gap - 2
        first = last - size
        if first < 0:
            raise UntrustedInputError("ACK frame", "its ranges are impossible")
        ranges.append((first, last))
    if kind == 0x03:
        for _ in range(3):
            _, at = read_varint_untrusted(data, at)
    found.acks.append(Ack(delay, ranges))
    return at


def _skip_untrusted(data: bytes, at: int, kind: int) -> int:
    """Where a frame that only user space understands ends."""
    if kind in _VARINTS_ONLY:
        for _ in range(_VARINTS_ONLY[kind]):
            _, at = read_varint_untrusted(data, at)
        return at
    if 0x08 <= kind <= 0x0F:  # STREAM: id, offset?, length?
        _, at = read_varint_untrusted(data, at)
        if kind & 4:
            _, at = read_varint_untrusted(data, at)
        if not kind & 2:
            return len(data)
    elif kind == 0x06:  # CRYPTO: offset, length
        _, at = read_varint_untrusted(data, at)
    elif kind == 0x18:  # NEW_CONNECTION_ID: sequence, retire prior to, length, id, token
        _, at = read_varint_untrusted(data, at)
        _, at = read_varint_untrusted(data, at)
        size = _slice_untrusted(data, at, at + 1)[0]
        if not 1 <= size <= 20:
            raise UntrustedInputError("NEW_CONNECTION_ID frame", "its length is impossible")
        return at + 1 + size + 16
    elif kind != 0x07:  # NEW_TOKEN: length
        raise UntrustedInputError("frame", "its type is unknown")
    size, at = read_varint_untrusted(data, at)
    return at + size


def encode_ack(ranges: Sequence[tuple[int, int]], delay: int, ecn: Sequence[int] = ()) -> bytes:
    """An ACK frame of descending ranges; with the three ECN counts when any packet came marked (§19.3.2)."""
    first, largest = ranges[0]
    parts = [b"\x03" if ecn else b"\x02", varint(largest), varint(delay), varint(len(ranges) - 1)]
    parts.append(varint(largest - first))
    for lower, upper in ranges[1:]:
        parts += varint(first - upper - 2), varint(upper - lower)
        first = lower
    parts += map(varint, ecn)
    return b"".join(parts)


def encode_close(error: int, *, application: bool) -> bytes:
    """CONNECTION_CLOSE with an empty reason: a text would name its author."""
    if application:
        return b"\x1d" + varint(error) + b"\0"
    return b"\x1c" + varint(error) + b"\0\0"
