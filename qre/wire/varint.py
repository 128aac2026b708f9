"""Variable-length integers (RFC 9000 §16), and byte strings preceded by their length."""

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


def encode_vector(content: bytes) -> bytes:
    """Its length as a varint, then itself."""
    return encode_varint(len(content)) + content


def read_varint_untrusted(data: bytes, at: int = 0) -> tuple[int, int]:
    """The value at ``at``, and where it ends."""
    if at >= len(data):
        raise UntrustedInputError("field", "it ends inside a number")
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        raise UntrustedInputError("field", "it ends inside a number")
    return int.from_bytes(data[at:end], "big") & (1 << 8 * size - 2) - 1, end


def read_bytes_untrusted(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """``size`` bytes at ``at``, and where they end."""
    end = at + size
    if end > len(data):
        raise UntrustedInputError("field", "it is cut off")
    return data[at:end], end


def read_vector_untrusted(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes whose length stands before them as a varint, and where they end."""
    size, at = read_varint_untrusted(data, at)
    return read_bytes_untrusted(data, at, size)
