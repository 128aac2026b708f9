"""Inner packets for tests of the user data plane, and checksums computed word by word."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from qre.workers.dataplane.inner.offload import NEEDS_CSUM, TCP, UDP, VNET_HEADER

V4 = (ip_address("10.1.2.3").packed, ip_address("10.4.5.6").packed)
V6 = (ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed)


def slow_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet: bytes, protocol: int, length: int) -> bytes:
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    return addresses + struct.pack(">II", length, protocol)


def upper_of(packet: bytes) -> int:
    return 20 if packet[0] >> 4 == 4 else 40


def assert_whole(packet: bytes) -> None:
    """Every length and checksum of a TCP or UDP packet is right."""
    at = upper_of(packet)
    if at == 20:
        assert slow_sum(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        protocol = packet[9]
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        protocol = packet[6]
    assert slow_sum(pseudo(packet, protocol, len(packet) - at) + packet[at:]) == 0xFFFF


def ip(
    addresses: tuple[bytes, bytes], protocol: int, upper: bytes, ident: int = 7, hops: int = 64, tos: int = 0
) -> bytes:
    if len(addresses[0]) == 16:
        first = 6 << 28 | tos << 20
        return struct.pack(">IHBB", first, len(upper) & 0xFFFF, protocol, hops) + b"".join(addresses) + upper
    head = struct.pack(">BBHHHBBH", 0x45, tos, (20 + len(upper)) & 0xFFFF, ident, 0x4000, hops, protocol, 0)
    head += b"".join(addresses)
    check = 0xFFFF - slow_sum(head)
    return head[:10] + check.to_bytes(2, "big") + head[12:] + upper


def tcp(
    addresses: tuple[bytes, bytes],
    payload: bytes,
    sequence: int = 1000,
    flags: int = 0x10,
    *,
    options: bytes = b"",
    whole: bool = True,
    window: int = 500,
    **more: int,
) -> bytes:
    """An IP packet; without ``whole`` the checksum is left to offload, as the kernel does."""
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack(">HHIIBBHHH", 1111, 2222, sequence, 77, offset, flags, window, 0, 0) + options
    length = len(head) + len(payload)
    cover = pseudo(ip(addresses, TCP, b""), TCP, length)
    check = 0xFFFF - slow_sum(cover + head + payload) if whole else slow_sum(cover)
    return ip(addresses, TCP, head[:16] + check.to_bytes(2, "big") + head[18:] + payload, **more)


def udp(addresses: tuple[bytes, bytes], payload: bytes) -> bytes:
    length = 8 + len(payload)
    check = slow_sum(pseudo(ip(addresses, UDP, b""), UDP, length))
    return ip(addresses, UDP, struct.pack(">HHHH", 1111, 2222, length & 0xFFFF, check) + payload)


def offloaded(packet: bytes, gso: int, size: int, offset: int = 16) -> bytes:
    start = upper_of(packet)
    return VNET_HEADER.pack(NEEDS_CSUM, gso, 0, size, start, offset) + packet
