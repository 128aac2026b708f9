"""Datagrams that look like QUIC handshakes from outside: a long header, and bytes that nobody can open."""

from __future__ import annotations

from qre.wire.packet import PacketType, build_long_header


def long_datagram(kind: PacketType, destination_cid: bytes, source_cid: bytes, size: int = 1200) -> bytes:
    """One datagram of this size."""
    header = build_long_header(kind, destination_cid, source_cid, b"\x01", size - 40)
    return header.ljust(size, b"x")
