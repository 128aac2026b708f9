"""The Initials of a first flight that resumes, with another binder: whoever has seen them can make them."""

from __future__ import annotations

from qre.wire.frames import Crypto, read_frame_untrusted
from qre.wire.packet import long_header_destination_cid, parse_header_untrusted
from qre.wire.protection import Protection, initial_secrets


def with_false_binder(flight: list[bytes], cid: bytes) -> list[bytes]:
    """The two Initials of ``flight``, to ``cid``, with the last bit of the hello changed. ``cid`` is as long as
    theirs."""
    before = long_header_destination_cid(flight[0])
    assert before is not None and len(before) == len(cid)
    reader, writer = (Protection(initial_secrets(each)[0]) for each in (before, cid))
    packets: list[tuple[bytes, int, bytearray]] = []
    last = (0, 0, 0)  # the end of a piece in the hello, its packet, and its end there
    for data in flight[:2]:
        offset = parse_header_untrusted(data, short_cid_length=0).number_offset
        header, number, payload = reader.unprotect_untrusted(data, offset, 0)
        at = 0
        while at < len(payload):
            frame, at = read_frame_untrusted(payload, at)
            if isinstance(frame, Crypto):
                last = max(last, (frame.offset + len(frame.data), len(packets), at))
        packets.append((header[:6] + cid + header[6 + len(cid) :], number, bytearray(payload)))
    _, which, end = last
    packets[which][2][end - 1] ^= 1
    return [writer.protect(header, number, bytes(payload)) for header, number, payload in packets]
