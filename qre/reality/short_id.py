"""Short ids: which client it is, up to 8 bytes that the server's operator hands out.

They are compared as 8 bytes, zero-padded on the right, so ``00`` and the empty id are the same one.
"""

from __future__ import annotations

from collections.abc import Iterable

from qre.errors import UserError
from qre.reality.authenticator import SHORT_ID_LENGTH


def parse_short_id(text: str) -> bytes:
    """0 to 16 hex digits, an even number of them, as the padded 8 bytes."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = None
    if raw is None or len(raw) > SHORT_ID_LENGTH or len(raw) * 2 != len(text):
        raise UserError(
            "short id", f"{text!r} is not an even number of 0 to 16 hex digits", "make one with genshortid"
        )
    return pad_short_id(raw)


def pad_short_id(short_id: bytes) -> bytes:
    if len(short_id) > SHORT_ID_LENGTH:
        raise UserError("short id", "longer than 8 bytes")
    return short_id.ljust(SHORT_ID_LENGTH, b"\x00")


def overlapping(short_ids: Iterable[bytes]) -> bytes | None:
    """The first padded id that is there twice, if one is."""
    seen: set[bytes] = set()
    for short_id in short_ids:
        padded = pad_short_id(short_id)
        if padded in seen:
            return padded
        seen.add(padded)
    return None
