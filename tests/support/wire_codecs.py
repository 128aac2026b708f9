"""The directions of wire codecs that the program does not need: one packet sealed, lengths told beforehand."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qre.wire.number import MAX_PACKET_NUMBER
from qre.wire.overhead import IPV4_HEADER, ROUTED_CID, UDP_HEADER, quic_overhead
from qre.wire.varint import encode_varint

_RETRY_KEY: Final = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")
_RETRY_NONCE: Final = bytes.fromhex("461599d35d632bf2239825bb")


def encode_http_datagram(quarter_stream_id: int, context_id: int, content: bytes) -> bytes:
    """The data of a DATAGRAM frame."""
    return encode_varint(quarter_stream_id) + encode_varint(context_id) + content


def encoded_length(number: int, largest_acknowledged: int | None) -> int:
    """Bytes (1..4) that a receiver needs to recover ``number``."""
    unacknowledged = number + 1 if largest_acknowledged is None else number - largest_acknowledged
    length = (unacknowledged.bit_length() + 1 + 7) // 8
    if not 0 <= number <= MAX_PACKET_NUMBER or not 1 <= length <= 4:
        raise ValueError("a packet number out of range")
    return length


def outer_length(inner: int, cid_length: int = ROUTED_CID, ip_header: int = IPV4_HEADER) -> int:
    """The length of the outer IP packet of an inner packet."""
    return inner + quic_overhead(cid_length) + UDP_HEADER + ip_header


def largest_inner_of_payload(udp_payload: int, cid_length: int = ROUTED_CID) -> int:
    """The largest inner packet of a UDP payload, as in max_udp_payload_size or a browser's 1250."""
    return udp_payload - quic_overhead(cid_length)


def retry_integrity_tag(original_destination_cid: bytes, retry_without_tag: bytes) -> bytes:
    """§5.8."""
    pseudo = bytes([len(original_destination_cid)]) + original_destination_cid + retry_without_tag
    return AESGCM(_RETRY_KEY).encrypt(_RETRY_NONCE, b"", pseudo)
