"""Explicit congestion notification on decapsulation: RFC 6040 §4.2, figure 4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qre.wire.datagram import DATAGRAM_HEAD

_HEAD = len(DATAGRAM_HEAD)
NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3


def decapsulated(plaintexts: Sequence[bytes], outer: int, drops: Counter[str]) -> list[bytes]:
    """The plaintexts with their inner codepoints as the outer one demands, without those that must be dropped."""
    if outer in {ECT0, NOT_ECT}:
        return list(plaintexts)
    kept = []
    for plaintext in plaintexts:
        inner = _codepoint(plaintext)
        if outer == CE and inner == NOT_ECT:
            drops["congestion"] += 1
        elif outer == CE:
            kept.append(_with_codepoint(plaintext, CE))
        elif inner == ECT0:  # outer ECT(1)
            kept.append(_with_codepoint(plaintext, ECT1))
        else:
            kept.append(plaintext)
    return kept


def _codepoint(plaintext: bytes) -> int:
    if len(plaintext) < _HEAD + 20:
        return NOT_ECT
    if plaintext[_HEAD] >> 4 == 4:
        return plaintext[_HEAD + 1] & 3
    return plaintext[_HEAD + 1] >> 4 & 3


def _with_codepoint(plaintext: bytes, codepoint: int) -> bytes:
    packet = bytearray(plaintext)
    if packet[_HEAD] >> 4 == 6:
        packet[_HEAD + 1] = packet[_HEAD + 1] & 0xCF | codepoint << 4
        return bytes(packet)
    old = packet[_HEAD + 1] & 3
    packet[_HEAD + 1] = packet[_HEAD + 1] & 0xFC | codepoint
    # RFC 1624: the sum of the header changes by new - old.
    check = (packet[_HEAD + 10] << 8 | packet[_HEAD + 11]) - (codepoint - old)
    packet[_HEAD + 10 : _HEAD + 12] = ((check - 1) % 0xFFFF + 1 if check <= 0 else check).to_bytes(2, "big")
    return bytes(packet)
