"""Tells Dest that the visit is over: what Chromium sends when a tab is closed before the handshake has ended.

Dest then forgets its half of the connection at once. Without it, Dest would repeat its flight for seconds.
"""

from __future__ import annotations

from typing import Final

from qre.wire.frames import ConnectionClose, encode_frame
from qre.wire.number import encode_number
from qre.wire.packet import PacketType, build_long_header
from qre.wire.protection import TAG_LENGTH, Protection, initial_secrets

#: Of Chromium's Initials (bytes), and of their packet numbers after the first.
_DATAGRAM: Final = 1250
_NUMBER_LENGTH: Final = 2
#: Chromium's words, in a packet that anyone can read.
_WORDS: Final = b"70:net error"


def farewell(keys_cid: bytes, dest_cid: bytes, client_cid: bytes, number: int, token: bytes = b"") -> bytes:
    """An Initial of the client's with CONNECTION_CLOSE (RFC 9000 §10.2.3), under the public keys of ``keys_cid``.

    ``dest_cid``: Dest's source CID; ``number``: higher than those of the client's Initials; ``token``: of a Retry.
    """
    close = encode_frame(ConnectionClose(0, application=False, reason=_WORDS))
    encoded = encode_number(number, _NUMBER_LENGTH)
    bare = len(build_long_header(PacketType.INITIAL, dest_cid, client_cid, encoded, 0, token)) + TAG_LENGTH
    payload = close.ljust(_DATAGRAM - bare, b"\0")
    length = len(encoded) + len(payload) + TAG_LENGTH
    header = build_long_header(PacketType.INITIAL, dest_cid, client_cid, encoded, length, token)
    return Protection(initial_secrets(keys_cid)[0]).protect(header, number, payload)
