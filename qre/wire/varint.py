"""Variable-length integers (RFC 9000 §16)."""

from __future__ import annotations

from typing import Final

from qre.errors import UntrustedInputError

MAX_VARINT: Final = (1 << 62) - 1


def encode_varint(value: int) -> bytes:
    """The shortest encoding. Raises ValueError beyond 62 bits."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 3 << 62).to_bytes(8, "big")
    raise ValueError("a varint has at most 62 bits")


def read_varint_untrusted(data: bytes, at: int = 0) -> tuple[int, int]:
    """The value at ``at``, and where it ends."""
    if at >= len(data):
        raise UntrustedInputError("frame", "it ends inside a number")
    size = 1 << (data[at] >> 6)
    end = at + size
    if end > len(data):
        raise UntrustedInputError("frame", "it ends inside a number")
    return int.from_bytes(data[at:end], "big") & (1 << 8 * size - 2) - 1, end
