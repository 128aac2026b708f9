"""QUIC frames (RFC 9000 §19, RFC 9221 §4): the one place that reads and writes them.

``read_frame_untrusted`` reads one, ``frames_untrusted`` a whole payload, ``encode_frame`` writes the shortest form.
A run of PADDING or of PING is read as one frame, so that many small frames do not make many objects. The hot
path of a data plane compares a DATAGRAM's head itself and does not come here. Nothing is read past the end of the
payload; the caller checks whether a frame is allowed in a packet of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from qre.errors import UntrustedInputError
from qre.wire.packet import MAX_CID
from qre.wire.varint import (
    MAX_VARINT,
    encode_varint,
    encode_vector,
    read_bytes_untrusted,
    read_varint_untrusted,
    read_vector_untrusted,
)

H3_NO_ERROR: Final = 0x100
STREAM_STATE_ERROR: Final = 0x05
FRAME_ENCODING_ERROR: Final = 0x07
CONNECTION_ID_LIMIT_ERROR: Final = 0x09
PROTOCOL_VIOLATION: Final = 0x0A
KEY_UPDATE_ERROR: Final = 0x0E
#: Types of FlowControl that concern one stream.
MAX_STREAM_DATA: Final = 0x11
STREAM_DATA_BLOCKED: Final = 0x15
#: The most ranges read from one ACK frame; real ones have fewer gaps.
MAX_ACK_RANGES_READ: Final = 512
RESET_TOKEN_LENGTH: Final = 16
PATH_DATA_LENGTH: Final = 8
#: Of one type (RFC 9000 §4.6, §19.11).
MAX_STREAMS: Final = 1 << 60
_FIN, _LENGTH, _OFFSET = 1, 2, 4


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Base of all frames."""


class Padding(Frame, frozen=True, gc=False):
    """``length`` of them in a row."""

    length: int = 1


class Ping(Frame, frozen=True, gc=False):
    """``count`` of them in a row."""

    count: int = 1


class Ack(Frame, frozen=True, gc=False):
    """``ranges`` descending as (first, last); ``delay`` in units of the sender's exponent; ``ecn``: no counts, or
    those of ECT(0), ECT(1) and CE."""

    ranges: Sequence[tuple[int, int]]
    delay: int
    ecn: Sequence[int] = ()


class ResetStream(Frame, frozen=True, gc=False):
    stream_id: int
    error: int
    final_size: int


class StopSending(Frame, frozen=True, gc=False):
    stream_id: int
    error: int


class Crypto(Frame, frozen=True, gc=False):
    offset: int
    data: bytes


class NewToken(Frame, frozen=True, gc=False):
    token: bytes


class Stream(Frame, frozen=True, gc=False):
    stream_id: int
    data: bytes
    offset: int = 0
    fin: bool = False


class FlowControl(Frame, frozen=True, gc=False):
    """MAX_DATA to STREAMS_BLOCKED, ``type`` 0x10 to 0x17: ``stream_id`` only for types that concern one stream."""

    type: int
    limit: int
    stream_id: int | None = None


class NewConnectionId(Frame, frozen=True, gc=False):
    sequence: int
    retire_prior_to: int
    cid: bytes
    reset_token: bytes


class RetireConnectionId(Frame, frozen=True, gc=False):
    sequence: int


class PathChallenge(Frame, frozen=True, gc=False):
    data: bytes


class PathResponse(Frame, frozen=True, gc=False):
    data: bytes


class ConnectionClose(Frame, frozen=True, gc=False):
    """``frame_type``: the frame with the error; present in QUIC's closes, never in the application's. Ours have no
    reason phrase: a text would identify the implementation."""

    error: int
    application: bool
    frame_type: int = 0
    reason: bytes = b""


class HandshakeDone(Frame, frozen=True, gc=False):
    pass


class Datagram(Frame, frozen=True, gc=False):
    data: bytes


_OF_ONE_STREAM: Final = frozenset({MAX_STREAM_DATA, STREAM_DATA_BLOCKED})
#: MAX_STREAMS and STREAMS_BLOCKED, bidirectional and unidirectional.
_OF_STREAM_COUNTS: Final = frozenset({0x12, 0x13, 0x16, 0x17})
_HANDSHAKE_DONE: Final = HandshakeDone()
_PING: Final = Ping()


def frames_untrusted(payload: bytes) -> Iterator[Frame]:
    """Every frame of a packet's payload, in order. RFC 9000 §12.4: at least one."""
    at = 0
    while True:
        frame, at = read_frame_untrusted(payload, at)
        yield frame
        if at == len(payload):
            return


def read_frame_untrusted(data: bytes, at: int = 0) -> tuple[Frame, int]:
    """The frame at ``at``, and where it ends: always behind ``at``, never beyond the data."""
    if at >= len(data):
        raise UntrustedInputError("packet", "it holds no frame")
    kind = data[at]
    reader = _READERS.get(kind)
    if reader is None:
        raise UntrustedInputError("frame", f"of an unknown type {kind:#x}")
    return reader(data, at + 1, kind)


def _read_padding(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    end = _end_of_run(data, at, b"\x00")
    return Padding(end - at + 1), end


def _read_ping(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    if data[at : at + 1] != b"\x01":
        return _PING, at
    end = _end_of_run(data, at, b"\x01")
    return Ping(end - at + 1), end


def _end_of_run(data: bytes, at: int, same: bytes) -> int:
    return len(data) - len(data[at:].lstrip(same)) if data[at : at + 1] == same else at


def _read_ack_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    largest, at = read_varint_untrusted(data, at)
    delay, at = read_varint_untrusted(data, at)
    count, at = read_varint_untrusted(data, at)
    size, at = read_varint_untrusted(data, at)
    if count > MAX_ACK_RANGES_READ or size > largest:
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
    if kind == 0x02:
        return Ack(ranges, delay), at
    ect0, at = read_varint_untrusted(data, at)
    ect1, at = read_varint_untrusted(data, at)
    ce, at = read_varint_untrusted(data, at)
    return Ack(ranges, delay, (ect0, ect1, ce)), at


def _read_reset_stream_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    stream_id, at = read_varint_untrusted(data, at)
    error, at = read_varint_untrusted(data, at)
    final_size, at = read_varint_untrusted(data, at)
    return ResetStream(stream_id, error, final_size), at


def _read_stop_sending_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    stream_id, at = read_varint_untrusted(data, at)
    error, at = read_varint_untrusted(data, at)
    return StopSending(stream_id, error), at


def _read_crypto_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    offset, at = read_varint_untrusted(data, at)
    content, at = read_vector_untrusted(data, at)
    _check_end_untrusted("CRYPTO frame", offset, content)
    return Crypto(offset, content), at


def _read_new_token_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    token, at = read_vector_untrusted(data, at)
    if not token:
        raise UntrustedInputError("NEW_TOKEN frame", "its token is empty")
    return NewToken(token), at


def _read_stream_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    stream_id, at = read_varint_untrusted(data, at)
    offset, at = read_varint_untrusted(data, at) if kind & _OFFSET else (0, at)
    content, at = read_vector_untrusted(data, at) if kind & _LENGTH else (data[at:], len(data))
    _check_end_untrusted("STREAM frame", offset, content)
    return Stream(stream_id, content, offset, bool(kind & _FIN)), at


def _check_end_untrusted(what: str, offset: int, content: bytes) -> None:
    """§19.6, §19.8: no offset of a stream exceeds the largest varint."""
    if offset + len(content) > MAX_VARINT:
        raise UntrustedInputError(what, "it ends beyond the largest offset")


def _read_flow_control_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    stream_id = None
    if kind in _OF_ONE_STREAM:
        stream_id, at = read_varint_untrusted(data, at)
    limit, at = read_varint_untrusted(data, at)
    if kind in _OF_STREAM_COUNTS and limit > MAX_STREAMS:
        raise UntrustedInputError("MAX_STREAMS or STREAMS_BLOCKED frame", "more streams than can exist")
    return FlowControl(kind, limit, stream_id), at


def _read_new_connection_id_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    sequence, at = read_varint_untrusted(data, at)
    retire_prior_to, at = read_varint_untrusted(data, at)
    (size,), at = read_bytes_untrusted(data, at, 1)
    if not 1 <= size <= MAX_CID:
        raise UntrustedInputError("NEW_CONNECTION_ID frame", "its length is impossible")
    if retire_prior_to > sequence:
        raise UntrustedInputError("NEW_CONNECTION_ID frame", "it retires itself")
    cid, at = read_bytes_untrusted(data, at, size)
    token, at = read_bytes_untrusted(data, at, RESET_TOKEN_LENGTH)
    return NewConnectionId(sequence, retire_prior_to, cid, token), at


def _read_retire_connection_id_untrusted(data: bytes, at: int, _: int) -> tuple[Frame, int]:
    sequence, at = read_varint_untrusted(data, at)
    return RetireConnectionId(sequence), at


def _read_path_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    content, at = read_bytes_untrusted(data, at, PATH_DATA_LENGTH)
    return PathChallenge(content) if kind == 0x1A else PathResponse(content), at


def _read_close_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    error, at = read_varint_untrusted(data, at)
    frame_type, at = read_varint_untrusted(data, at) if kind == 0x1C else (0, at)
    reason, at = read_vector_untrusted(data, at)
    return ConnectionClose(error, kind == 0x1D, frame_type, reason), at


def _read_handshake_done(_: bytes, at: int, __: int) -> tuple[Frame, int]:
    return _HANDSHAKE_DONE, at


def _read_datagram_untrusted(data: bytes, at: int, kind: int) -> tuple[Frame, int]:
    content, at = read_vector_untrusted(data, at) if kind == 0x31 else (data[at:], len(data))
    return Datagram(content), at


_READERS: Final[dict[int, Callable[[bytes, int, int], tuple[Frame, int]]]] = {
    0x00: _read_padding,
    0x01: _read_ping,
    0x02: _read_ack_untrusted,
    0x03: _read_ack_untrusted,
    0x04: _read_reset_stream_untrusted,
    0x05: _read_stop_sending_untrusted,
    0x06: _read_crypto_untrusted,
    0x07: _read_new_token_untrusted,
    **dict.fromkeys(range(0x08, 0x10), _read_stream_untrusted),
    **dict.fromkeys(range(0x10, 0x18), _read_flow_control_untrusted),
    0x18: _read_new_connection_id_untrusted,
    0x19: _read_retire_connection_id_untrusted,
    0x1A: _read_path_untrusted,
    0x1B: _read_path_untrusted,
    0x1C: _read_close_untrusted,
    0x1D: _read_close_untrusted,
    0x1E: _read_handshake_done,
    0x30: _read_datagram_untrusted,
    0x31: _read_datagram_untrusted,
}


def encode_frame(frame: Frame) -> bytes:
    """The shortest encoding that may be followed by another frame."""
    match frame:
        case Padding(length=count):
            return bytes(count)
        case Ping(count=count):
            return b"\x01" * count
        case Ack(ranges=ranges, delay=delay, ecn=ecn):
            return encode_ack(ranges, delay, ecn)
        case ResetStream(stream_id=stream_id, error=error, final_size=final_size):
            return b"\x04" + encode_varint(stream_id) + encode_varint(error) + encode_varint(final_size)
        case StopSending(stream_id=stream_id, error=error):
            return b"\x05" + encode_varint(stream_id) + encode_varint(error)
        case Crypto(offset=offset, data=data):
            return b"\x06" + encode_varint(offset) + encode_vector(data)
        case NewToken(token=token):
            return b"\x07" + encode_vector(token)
        case Stream():
            return _encode_stream(frame)
        case FlowControl(type=kind, limit=limit, stream_id=stream_id):
            of = b"" if stream_id is None else encode_varint(stream_id)
            return bytes([kind]) + of + encode_varint(limit)
        case NewConnectionId(sequence=sequence, retire_prior_to=prior, cid=cid, reset_token=token):
            return b"\x18" + encode_varint(sequence) + encode_varint(prior) + encode_vector(cid) + token
        case RetireConnectionId(sequence=sequence):
            return b"\x19" + encode_varint(sequence)
        case PathChallenge(data=data):
            return b"\x1a" + data
        case PathResponse(data=data):
            return b"\x1b" + data
        case ConnectionClose(error=error, application=True, reason=reason):
            return b"\x1d" + encode_varint(error) + encode_vector(reason)
        case ConnectionClose(error=error, frame_type=kind, reason=reason):
            return b"\x1c" + encode_varint(error) + encode_varint(kind) + encode_vector(reason)
        case HandshakeDone():
            return b"\x1e"
        case Datagram(data=data):
            return b"\x31" + encode_vector(data)
        case _:
            raise TypeError(type(frame).__name__)


def _encode_stream(frame: Stream) -> bytes:
    kind = 0x08 | _LENGTH | (_OFFSET if frame.offset else 0) | frame.fin
    offset = encode_varint(frame.offset) if frame.offset else b""
    return bytes([kind]) + encode_varint(frame.stream_id) + offset + encode_vector(frame.data)


def encode_ack(ranges: Sequence[tuple[int, int]], delay: int, ecn: Sequence[int] = ()) -> bytes:
    """An ACK frame of descending ranges; with the three ECN counts when any packet came marked (§19.3.2)."""
    first, largest = ranges[0]
    parts = [
        b"\x03" if ecn else b"\x02",
        encode_varint(largest),
        encode_varint(delay),
        encode_varint(len(ranges) - 1),
    ]
    parts.append(encode_varint(largest - first))
    for lower, upper in ranges[1:]:
        parts += encode_varint(first - upper - 2), encode_varint(upper - lower)
        first = lower
    parts += map(encode_varint, ecn)
    return b"".join(parts)
