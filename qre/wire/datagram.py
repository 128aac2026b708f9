"""The bytes before an IP packet in a QUIC DATAGRAM frame: HTTP Datagrams of CONNECT-IP.

RFC 9297 §2.1 (quarter stream id), RFC 9484 §6 (context id 0: a whole IP packet). The tunnel is stream 0, so both are
zero; longer encodings of zero are legal and read.
"""

from __future__ import annotations

from typing import Final

from qre.wire.varint import read_varint_untrusted

#: DATAGRAM frame without a length (RFC 9221 §4), quarter stream id 0, context id 0.
DATAGRAM_HEAD: Final = b"\x30\x00\x00"


def parse_http_datagram_untrusted(data: bytes) -> tuple[int, int, bytes]:
    """(quarter stream id, context id, content) of the data of a DATAGRAM frame."""
    quarter_stream_id, at = read_varint_untrusted(data)
    context_id, at = read_varint_untrusted(data, at)
    return quarter_stream_id, context_id, data[at:]
