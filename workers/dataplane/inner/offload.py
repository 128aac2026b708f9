"""Super-packets: the reads and writes of a TUN device with IFF_VNET_HDR (virtio 1.2 §5.1.6, linux/virtio_net.h).

Transmit: one read gives up to 64 KB of TCP (or UDP) payload behind one header; it is split into packets that fit,
with checksums completed. It must never trust a length or offset of the header it reads: the packet may come from any
local program.

struct virtio_net_hdr, native byte order::

    flags u8, gso_type u8, hdr_len u16, gso_size u16, csum_start u16, csum_offset u16
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from qre.errors import UntrustedInputError
from qre.wire.datagram import DATAGRAM_HEAD
from qre.wire.internet_checksum import checksum_of, word_sum

VNET_HEADER = struct.Struct("=BBHHHH")
VNET_HEADER_SIZE = VNET_HEADER.size
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
NO_OFFLOAD = bytes(VNET_HEADER_SIZE)
TOO_BIG = "too big"
HOPS_OVER = "its hops are over"
#: Packets that one super-packet may become.
MAX_SEGMENTS = 128

TCP, UDP = 6, 17
_FIN, _SYN, _RST, _PSH, _URG, _CWR = 0x01, 0x02, 0x04, 0x08, 0x20, 0x80
_END_OF_OPTIONS, _NO_OPERATION = 0, 1
_SIGNED = {19, 29}  # options that sign a segment whole
_TCP_HEADER = struct.Struct(">4sIIBBHHH")  # ports, sequence, acknowledgement, data offset, flags, window, sum, urgent
_IP4_HEADER = struct.Struct(">3s2sHH4sH")  # DATAGRAM_HEAD, version and tos, length, id, fragment..protocol, sum
_IP6_HEADER = struct.Struct(">3s4sH")  # DATAGRAM_HEAD, version..flow label, payload length


def split_untrusted(read: bytes, max_size: int) -> list[bytes]:
    """The packets of one TUN read (header included), each as a plaintext: ``DATAGRAM_HEAD`` + IP packet.

    The hop count of each is one less (RFC 9484 §7: decremented on encapsulation, not on decapsulation); a packet
    whose hops are over is refused. Raises UntrustedInputError, also when a packet would be longer than ``max_size``;
    but TCP super-packets are cut into segments that fit, shorter than gso_size.
    """
    if len(read) < VNET_HEADER_SIZE + 20:
        raise UntrustedInputError("packet", "too short")
    flags, gso_type, _, _, csum_start, csum_offset = VNET_HEADER.unpack_from(read)
    if gso_type != GSO_NONE:
        return _split_super_untrusted(read, max_size)
    packet = read[VNET_HEADER_SIZE:]
    if len(packet) > max_size:
        raise UntrustedInputError("packet", TOO_BIG)
    if flags & NEEDS_CSUM:
        packet = _complete_checksum_untrusted(packet, csum_start, csum_offset)
    return [DATAGRAM_HEAD + with_hop_taken_untrusted(packet)]


def with_hop_taken_untrusted(packet: bytes) -> bytes:
    """The packet with its TTL or hop limit one less, the IPv4 header checksum updated (RFC 1624)."""
    version = packet[0] >> 4
    if version == 4:
        if packet[8] <= 1:
            raise UntrustedInputError("packet", HOPS_OVER)
        # The TTL is the high byte of its word: the checksum grows by 0x0100, with end-around carry.
        check = (packet[10] << 8 | packet[11]) + 0x100
        check = (check + (check >= 0xFFFF)) & 0xFFFF
        return b"".join((packet[:8], bytes((packet[8] - 1, packet[9], check >> 8, check & 0xFF)), packet[12:]))
    if version != 6 or len(packet) < 40:
        raise UntrustedInputError("packet", "not IP")
    if packet[7] <= 1:
        raise UntrustedInputError("packet", HOPS_OVER)
    return b"".join((packet[:7], bytes((packet[7] - 1,)), packet[8:]))


def _complete_checksum_untrusted(packet: bytes, start: int, offset: int) -> bytes:
    """Fill in a checksum whose field holds the sum of the pseudo-header (CHECKSUM_PARTIAL)."""
    at = start + offset
    if start < 20 or at + 2 > len(packet):
        raise UntrustedInputError("packet", "its checksum lies outside")
    check = checksum_of(word_sum(packet[start:]))
    if check == 0 and offset == 6:
        check = 0xFFFF  # UDP: 0 would mean none (RFC 768)
    return b"".join((packet[:at], check.to_bytes(2, "big"), packet[at + 2 :]))


def _split_super_untrusted(read: bytes, max_size: int) -> list[bytes]:
    flags, gso_type, _, size, ip_length, csum_offset = VNET_HEADER.unpack_from(read)
    gso_type &= ~GSO_ECN
    if not flags & NEEDS_CSUM:
        raise UntrustedInputError("super-packet", "without checksum offload")
    if gso_type in {GSO_TCPV4, GSO_TCPV6} and csum_offset == 16:
        protocol, least = TCP, 20
    elif gso_type == GSO_UDP_L4 and csum_offset == 6:
        protocol, least = UDP, 8
    else:
        raise UntrustedInputError("super-packet", "of an unknown kind")
    at = VNET_HEADER_SIZE + ip_length
    version = read[VNET_HEADER_SIZE] >> 4
    fits = (
        ip_length == (read[VNET_HEADER_SIZE] & 0x0F) * 4 >= 20 if version == 4 else version == 6 and ip_length >= 40
    )
    if not fits or gso_type == (GSO_TCPV6 if version == 4 else GSO_TCPV4) or at + least > len(read):
        raise UntrustedInputError("super-packet", "its network header is impossible")
    length = (read[at + 12] >> 4) * 4 if protocol == TCP else 8
    payload = len(read) - at - length
    if length < least or payload <= 0 or not size > 0 or payload > size * MAX_SEGMENTS:
        raise UntrustedInputError("super-packet", "its sizes are impossible")
    room = max_size - ip_length - length
    if min(size, payload) > room:
        if protocol == UDP or payload > room * MAX_SEGMENTS:
            raise UntrustedInputError("super-packet", TOO_BIG)
        size = room
    header = with_hop_taken_untrusted(read[VNET_HEADER_SIZE : at + length])
    network = _network_headers(header[:ip_length])
    transport = (_tcp_headers if protocol == TCP else _udp_headers)(header, ip_length, size)
    begin, end = at + length, len(read)
    out = []
    for n, start in enumerate(range(begin, end, size)):
        piece = read[start : start + size]
        upper = transport(n, piece, start + size >= end)
        out.append(b"".join((network(n, len(upper) + len(piece)), upper, piece)))
    return out


def as_super_packet_untrusted(read: bytes) -> bytes | None:
    """The read of one TCP segment as that of a super-packet, which ``split_untrusted`` cuts; None when it is anything
    else, or must stay whole: SYN, RST or urgent, signed (RFC 2385, RFC 5925), or with a wrong checksum."""
    flags, gso_type, _, _, csum_start, csum_offset = VNET_HEADER.unpack_from(read)
    packet = read[VNET_HEADER_SIZE:]
    at = _tcp_at_untrusted(packet)
    if gso_type != GSO_NONE or at is None or len(packet) < at + 20:
        return None
    begin = at + (packet[at + 12] >> 4) * 4
    if not at + 20 <= begin < len(packet) or packet[at + 13] & (_SYN | _RST | _URG):
        return None
    if tcp_options_untrusted(packet[at + 20 : begin]).keys() & _SIGNED:
        return None
    v4 = packet[0] >> 4 == 4
    if not flags & NEEDS_CSUM:
        pseudo = _pseudo_header_sum(packet[:at], TCP) + len(packet) - at
        if (pseudo + word_sum(packet[at:])) % 0xFFFF:
            return None
    elif (csum_start, csum_offset) != (at, 16):
        return None
    return VNET_HEADER.pack(NEEDS_CSUM, GSO_TCPV4 if v4 else GSO_TCPV6, 0, 0xFFFF, at, 16) + packet


def _tcp_at_untrusted(packet: bytes) -> int | None:
    """Where the header of a TCP segment begins that is as long as its IP header says, and no fragment."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        at, length = (packet[0] & 0x0F) * 4, packet[2] << 8 | packet[3]
        tcp = at >= 20 and packet[9] == TCP and not (packet[6] & 0x3F or packet[7])
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        at, length = 40, 40 + (packet[4] << 8 | packet[5])
        tcp = packet[6] == TCP
    else:
        return None
    return at if tcp and length == len(packet) else None


def tcp_options_untrusted(options: bytes) -> dict[int, int]:
    """Kind and offset of each option of a TCP header, up to the first malformed one."""
    found: dict[int, int] = {}
    at, end = 0, len(options)
    while at < end and options[at] != _END_OF_OPTIONS:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        if at + 2 > end or options[at + 1] < 2 or at + options[at + 1] > end:
            break
        found.setdefault(options[at], at)
        at += options[at + 1]
    return found


def _network_headers(header: bytes) -> Callable[[int, int], bytes]:
    """``(n, length of transport header and payload)`` -> DATAGRAM_HEAD and the network header of segment ``n``."""
    if header[0] >> 4 == 6:
        begin, rest, extensions = header[:4], header[6:], len(header) - 40
        return lambda n, length: _IP6_HEADER.pack(DATAGRAM_HEAD, begin, length + extensions) + rest
    begin, middle, rest, own = header[:2], header[6:10], header[12:], len(header)
    identification = header[4] << 8 | header[5]
    fixed = word_sum(begin + middle + rest)

    def ipv4(n: int, length: int) -> bytes:
        ident, total = (identification + n) & 0xFFFF, own + length
        check = checksum_of(fixed + total + ident)
        return _IP4_HEADER.pack(DATAGRAM_HEAD, begin, total, ident, middle, check) + rest

    return ipv4


def _pseudo_header_sum(header: bytes, protocol: int) -> int:
    """Addresses and protocol (RFC 9293 §3.1, RFC 8200 §8.1); the length is added a segment."""
    return word_sum(header[12:20] if header[0] >> 4 == 4 else header[8:40]) + protocol


def _tcp_headers(header: bytes, at: int, size: int) -> Callable[[int, bytes, bool], bytes]:
    """``(n, payload, whether it is the last)`` -> the TCP header of segment ``n``."""
    ports, first, acked, offset, flags, window, _, urgent = _TCP_HEADER.unpack_from(header, at)
    options = header[at + 20 :]
    fixed = _pseudo_header_sum(header, TCP) + word_sum(ports + options) + acked + (offset << 8) + window + urgent
    length = len(header) - at

    def tcp(n: int, payload: bytes, last: bool) -> bytes:
        sequence = (first + n * size) & 0xFFFFFFFF
        bits = flags if last else flags & ~(_FIN | _PSH)
        if n:
            bits &= ~_CWR
        check = checksum_of(fixed + sequence + bits + length + len(payload) + word_sum(payload))
        return _TCP_HEADER.pack(ports, sequence, acked, offset, bits, window, check, urgent) + options

    return tcp


def _udp_headers(header: bytes, at: int, size: int) -> Callable[[int, bytes, bool], bytes]:
    ports = header[at : at + 4]
    fixed = _pseudo_header_sum(header, UDP) + word_sum(ports)

    def udp(n: int, payload: bytes, last: bool) -> bytes:
        length = 8 + len(payload)
        check = checksum_of(fixed + 2 * length + word_sum(payload)) or 0xFFFF  # 0 would mean none
        return ports + length.to_bytes(2, "big") + check.to_bytes(2, "big")

    return udp
