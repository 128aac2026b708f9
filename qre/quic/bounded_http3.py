"""aioquic's HTTP/3 (RFC 9114) with bounds on the cost of a peer's frames.

aioquic buffers a HEADERS or SETTINGS frame of any length, and copies the buffer whenever more of it arrives. It
decodes a header block regardless of the result's size: a reference of one byte can stand for an entry as long as the
dynamic table (RFC 9204 §4.5). It reads all frames that have arrived at once: a peer that withholds the first byte of
megabytes of the smallest ones has all of them read for one packet.
"""

from __future__ import annotations

from aioquic.h3.connection import FrameType, H3Connection, H3Stream
from aioquic.h3.events import H3Event, Headers
from aioquic.quic.connection import QuicConnection

from qre.quic.bounds import MAX_CONTROL_FRAME, Bound, Bounds, OverBoundError

#: Bytes that a field counts besides its name and value (RFC 9114 §4.2.2).
_FIELD_OVERHEAD = 32
#: Bytes that a section counts besides its fields, in the sum of all: decoding an empty one takes its time, too.
_SECTION_OVERHEAD = 256
#: All sections together may have so many times what one may.
_SECTIONS = 3
#: The longest entry of the static table (RFC 9204, appendix A), name and value (bytes).
_LONGEST_STATIC = 98


class BoundedHttp3(H3Connection):
    """A subclass sets ``bounds``. Frames over a bound raise OverBoundError."""

    bounds: Bounds

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self._frames = 0
        self._unidirectional = 0  # bytes
        self._fields = 0  # bytes of all sections

    def _receive_stream_data_uni(self, stream: H3Stream, data: bytes, stream_ended: bool) -> list[H3Event]:
        """Instructions of QPACK are not frames: their cost is bounded by their length."""
        self._unidirectional += len(data)
        if self._unidirectional > self.bounds.unidirectional:
            raise OverBoundError(Bound.UNIDIRECTIONAL)
        return super()._receive_stream_data_uni(stream, data, stream_ended)

    def _count_frame(self) -> None:
        self._frames += 1
        if self._frames > self.bounds.frames:
            raise OverBoundError(Bound.FRAMES)

    def _check_request_or_push_frame_type(self, frame_type: int, stream: H3Stream) -> None:
        """aioquic calls this when it knows a frame's type and length, before it buffers anything."""
        self._count_frame()
        super()._check_request_or_push_frame_type(frame_type, stream)
        collected = frame_type in (FrameType.HEADERS, FrameType.PUSH_PROMISE)
        if collected and (stream.frame_size or 0) > self.bounds.header_block:
            raise OverBoundError(Bound.FRAME)

    def _check_control_frame_type(self, frame_type: int) -> None:
        """The same on the control stream."""
        self._count_frame()
        super()._check_control_frame_type(frame_type)
        stream = self._stream[self._peer_control_stream_id] if self._peer_control_stream_id is not None else None
        collected = frame_type in (FrameType.SETTINGS, FrameType.MAX_PUSH_ID)
        if collected and stream is not None and (stream.frame_size or 0) > MAX_CONTROL_FRAME:
            raise OverBoundError(Bound.FRAME)

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Headers:
        """Refuse a block that could decode to too much before decoding it, and one that does afterwards. Interim
        answers and trailers have sections, too, so that all of them are counted together as well."""
        waited = self._stream[stream_id].blocked_frame_size if stream_id in self._stream else None
        self._check_block(len(frame_data) if frame_data is not None else waited or 0)
        headers = self._decoded(stream_id, frame_data)
        size = sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers)
        self._fields += size + _SECTION_OVERHEAD
        if size > self.bounds.field_section or self._fields > _SECTIONS * self.bounds.field_section:
            raise OverBoundError(Bound.FIELDS)
        return headers

    def _decoded(self, stream_id: int, frame_data: bytes | None) -> Headers:
        return super()._decode_headers(stream_id, frame_data)

    def _check_block(self, length: int) -> None:
        """No entry of the dynamic table exceeds what the encoder stream brought (Huffman: 5 bits for 8 at best)."""
        longest = max(_LONGEST_STATIC, min(self._max_table_capacity, self._encoder_bytes_received * 8 // 5))
        if length * longest > self.bounds.field_section * 16:
            raise OverBoundError(Bound.FIELDS)
