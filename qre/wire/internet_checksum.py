"""The Internet checksum (RFC 1071): a sum of 16-bit words in ones' complement, a big-endian number modulo 65535."""

from __future__ import annotations

#: 2^16 is 1 modulo 65535, and so is any power of it: folding a long number at multiples of 16 bits leaves
#: its remainder as it is, for less than half the cost. (Multiples of 30, too: a digit of Python's integers.)
_FOLD, _FOLD_AGAIN = 5280, 2640
_FOLD_MASK, _FOLD_AGAIN_MASK = (1 << _FOLD) - 1, (1 << _FOLD_AGAIN) - 1


def checksum_of(total: int) -> int:
    """The checksum field for data whose words add up to ``total``, in any representation modulo 65535."""
    # A remainder of 0 stands for both zeros of ones' complement; headers are never all zero, so the sum is 0xFFFF.
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def word_sum(data: bytes) -> int:
    """The sum of the big-endian 16-bit words, modulo 65535; an odd last byte counts as the high one."""
    total = int.from_bytes(data, "big")
    if len(data) > 256:
        total = (total >> _FOLD) + (total & _FOLD_MASK)
        total = (total >> _FOLD_AGAIN) + (total & _FOLD_AGAIN_MASK)
    return (total << 8) % 0xFFFF if len(data) & 1 else total % 0xFFFF
