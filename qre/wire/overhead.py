"""How much larger a packet gets inside the tunnel: the arithmetic of it, in one place.

IPv4 20 | UDP 8 | first byte 1, CID, number 4 | DATAGRAM 1, quarter stream id 1, context id 1 | inner | tag 16
"""

from __future__ import annotations

from typing import Final

IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
UDP_HEADER: Final = 8
SHORT_HEADER_FIRST: Final = 1
NUMBER: Final = 4
DATAGRAM_HEAD: Final = 3
TAG: Final = 16
ROUTED_CID: Final = 20


def quic_overhead(cid_length: int = ROUTED_CID) -> int:
    """Bytes of QUIC around one inner packet."""
    return SHORT_HEADER_FIRST + cid_length + NUMBER + DATAGRAM_HEAD + TAG


def outer_length(inner: int, cid_length: int = ROUTED_CID, ip_header: int = IPV4_HEADER) -> int:
    """The length of the outer IP packet of an inner packet."""
    return inner + quic_overhead(cid_length) + UDP_HEADER + ip_header


def largest_inner(link_mtu: int, cid_length: int = ROUTED_CID, ip_header: int = IPV4_HEADER) -> int:
    """The largest inner packet that fits a link of this MTU without being fragmented."""
    return link_mtu - UDP_HEADER - ip_header - quic_overhead(cid_length)


def largest_inner_of_payload(udp_payload: int, cid_length: int = ROUTED_CID) -> int:
    """The largest inner packet of a UDP payload, as in max_udp_payload_size or a browser's 1250."""
    return udp_payload - quic_overhead(cid_length)
