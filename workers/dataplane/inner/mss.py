"""The MSS option of TCP's SYN segments, lowered to what the tunnel carries: RFC 9293 §3.7.1, RFC 6691.

A SYN or SYN-ACK from the tunnel tells a host on this side how large its segments may be, which this end then sends:
so each end lowers the MSS of what it delivers, by its own limit, and both directions are covered.
"""

from __future__ import annotations

from typing import Final

from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.internet_checksum import checksum_of
from qre.workers.dataplane.inner.offload import TCP, tcp_options_untrusted

_HEAD: Final = len(DATAGRAM_HEAD)
_SYN: Final = 0x02
_TCP_HEADER: Final = 20
_MSS, _MSS_LENGTH = 2, 4


def with_mss_lowered_untrusted(plaintext: bytes, inner: int) -> bytes:
    """The plaintext, a SYN's MSS such that a segment's packet has at most ``inner`` bytes; anything else as it is."""
    at = _tcp_at_untrusted(plaintext)
    if at is None or len(plaintext) < at + _TCP_HEADER or not plaintext[at + 13] & _SYN:
        return plaintext
    option = _mss_at_untrusted(plaintext, at)
    network = 20 if plaintext[_HEAD] >> 4 == 4 else 40
    most = inner - network - _TCP_HEADER
    if option is None or most <= 0:
        return plaintext
    told = plaintext[option] << 8 | plaintext[option + 1]
    if told <= most:
        return plaintext
    # RFC 1624; an option may stand across two words of the sum.
    grown = (most - told) * (1 if (option - at) % 2 == 0 else 256)
    check = checksum_of(0xFFFF - (plaintext[at + 16] << 8 | plaintext[at + 17]) + grown)
    changed = bytearray(plaintext)
    changed[option : option + 2] = most.to_bytes(2, "big")
    changed[at + 16 : at + 18] = check.to_bytes(2, "big")
    return bytes(changed)


def _tcp_at_untrusted(plaintext: bytes) -> int | None:
    """Where the TCP header begins; None when there is none, or when it is behind IPv6 extension headers."""
    if len(plaintext) < _HEAD + 20:
        return None
    version = plaintext[_HEAD] >> 4
    if version == 4:
        first = not (plaintext[_HEAD + 6] & 0x1F or plaintext[_HEAD + 7])
        return _HEAD + (plaintext[_HEAD] & 0x0F) * 4 if first and plaintext[_HEAD + 9] == TCP else None
    return _HEAD + 40 if version == 6 and plaintext[_HEAD + 6] == TCP else None


def _mss_at_untrusted(plaintext: bytes, at: int) -> int | None:
    """Where the value of the MSS option stands in the TCP header at ``at``."""
    options = plaintext[at + _TCP_HEADER : at + (plaintext[at + 12] >> 4) * 4]
    option = tcp_options_untrusted(options).get(_MSS)
    if option is None or options[option + 1] != _MSS_LENGTH:
        return None
    return at + _TCP_HEADER + option + 2
