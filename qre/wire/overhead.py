"""How much larger a packet gets inside the tunnel: all the arithmetic in one place.

IPv4 20 | UDP 8 | first byte 1, CID, number 4 | DATAGRAM 1, quarter stream id 1, context id 1 | inner | tag 16
"""

from __future__ import annotations

TYPE_CHECKING = False  # the command line reads this module at every start
if TYPE_CHECKING:
    from typing import Final

ETHERNET_MTU: Final = 1500
IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
UDP_HEADER: Final = 8
SHORT_HEADER_FIRST: Final = 1
NUMBER: Final = 4
DATAGRAM_HEAD: Final = 3
SPLIT_HEAD_LENGTH: Final = 4  # beside DATAGRAM_HEAD, before a part of a packet
TAG: Final = 16
ROUTED_CID: Final = 20
#: Every link must carry IPv6 packets of this size whole (RFC 8200 §5), so a tunnel that cannot carries no IPv6.
MIN_MTU_IPV6: Final = 1280
#: Every path that QUIC may use carries UDP payloads of this size (RFC 9000 §14).
BASE_UDP_PAYLOAD: Final = 1200
#: A browser never sends a larger UDP payload, and a client neither.
BROWSER_UDP_PAYLOAD: Final = 1250
#: Outer datagrams are never larger than this, whatever the peer accepts.
MAX_UDP_PAYLOAD: Final = ETHERNET_MTU - IPV4_HEADER - UDP_HEADER


def path_mtu(udp_payload: int, address: str) -> int:
    """The length of the outer IP packet that takes a UDP payload to ``address``, with or without a port."""
    return udp_payload + UDP_HEADER + (IPV6_HEADER if address.count(":") > 1 else IPV4_HEADER)


def packet_overhead(cid_length: int) -> int:
    """Bytes of a data plane's packet around its frames."""
    return SHORT_HEADER_FIRST + cid_length + NUMBER + TAG


def quic_overhead(cid_length: int = ROUTED_CID) -> int:
    """Bytes of QUIC around one inner packet."""
    return packet_overhead(cid_length) + DATAGRAM_HEAD


def largest_inner(link_mtu: int, cid_length: int = ROUTED_CID, ip_header: int = IPV4_HEADER) -> int:
    """The largest inner packet that fits a link of this MTU without being fragmented."""
    return link_mtu - UDP_HEADER - ip_header - quic_overhead(cid_length)
