"""Whose a datagram may be, by what anybody can read of it."""

from __future__ import annotations

from collections.abc import Collection

from qre.wire.initial import MAX_DATAGRAM, MIN_DATAGRAM
from qre.wire.packet import is_initial, is_long, long_header_destination_cid


def may_begin_hello(data: bytes) -> bool:
    """Whether this could be the first datagram of a ClientHello: an Initial of version 1, of a length that counts."""
    return MIN_DATAGRAM <= len(data) <= MAX_DATAGRAM and is_initial(data)


def is_to(data: bytes, cids: Collection[bytes]) -> bool:
    """Whether a packet's destination connection ID is one of these."""
    if is_long(data):
        return long_header_destination_cid(data) in cids
    return any(data.startswith(cid, 1) for cid in cids if cid)
