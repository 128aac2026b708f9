"""Frames with a browser's encoding, where stock's differs in length (RFC 9000 §19.8, §19.19)."""

from __future__ import annotations

from typing import Final

from aioquic.buffer import size_uint_var
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.stream import QuicStream

#: Bits of a STREAM frame's type.
_LENGTH: Final = 2
_OFFSET: Final = 4
#: What is shorter has its length: PADDING may have to follow it.
_SHORT: Final = 4
#: Room for a CLOSE frame, its reason phrase excepted.
_CLOSE_CAPACITY: Final = 5
#: A variable-length integer of two bytes (RFC 9000 §16).
_TWO_BYTES: Final = 0x4000


def has_data(stream: QuicStream) -> bool:
    """Whether it has something to send; stock notices the end only when it tries."""
    return bool(len(stream.sender._pending)) or stream.sender._pending_eof


def has_frames(stream: QuicStream) -> bool:
    """Whether it has any frame to send."""
    return has_data(stream) or stream.sender.reset_pending or stream.receiver.stop_pending


def write_stream(builder: QuicPacketBuilder, stream: QuicStream, max_offset: int, *, last: bool) -> int:
    """STREAM with its length in the shortest form, and without one if it is the ``last`` frame of the packet: stock
    always takes two bytes. Returns how many bytes were sent for the first time."""
    sender = stream.sender
    stream_id, offset, before = stream.stream_id or 0, sender.next_offset, sender.highest_offset
    head = 1 + size_uint_var(stream_id) + (size_uint_var(offset) if offset else 0)
    frame = sender.get_frame(builder.remaining_flight_space - head - 2, max_offset)
    if frame is None:
        return 0
    length = not last or len(frame.data) < _SHORT
    kind = QuicFrameType.STREAM_BASE | (_LENGTH if length else 0) | (_OFFSET if frame.offset else 0) | int(frame.fin)
    buf = builder.start_frame(
        kind,
        capacity=head + 2,
        handler=sender.on_data_delivery,
        handler_args=(frame.offset, frame.offset + len(frame.data), frame.fin),
    )
    buf.push_uint_var(stream_id)
    if frame.offset:
        buf.push_uint_var(frame.offset)
    if length:
        buf.push_uint_var(len(frame.data))
    buf.push_bytes(frame.data)
    return int(sender.highest_offset) - int(before)


def write_parting(builder: QuicPacketBuilder, phrase: bytes) -> None:
    """CONNECTION_CLOSE without an error. The browser takes two bytes for the phrase's length, however short."""
    buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=_CLOSE_CAPACITY + len(phrase))
    buf.push_uint_var(QuicErrorCode.NO_ERROR)
    buf.push_uint_var(0)  # the frame at fault: none
    buf.push_uint16(_TWO_BYTES | len(phrase))
    buf.push_bytes(phrase)
