"""Packet numbers in headers: truncation and its reversal (RFC 9000 §17.1, Appendix A.2 and A.3)."""

from __future__ import annotations

from typing import Final

MAX_PACKET_NUMBER: Final = (1 << 62) - 1
#: User space numbers its 1-RTT packets below this; the data plane numbers from here on.
PACKET_NUMBER_BASE: Final = 65_536


def encode_number(number: int, length: int) -> bytes:
    """The last ``length`` bytes of ``number``."""
    return (number & (1 << 8 * length) - 1).to_bytes(length, "big")


def decode_number(truncated: int, length: int, expected: int) -> int:
    """The number nearest to ``expected`` (one above the largest received) that ends with these bytes."""
    window = 1 << 8 * length
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - window // 2 and candidate + window <= MAX_PACKET_NUMBER:
        return candidate + window
    if candidate > expected + window // 2 and candidate >= window:
        return candidate - window
    return candidate
