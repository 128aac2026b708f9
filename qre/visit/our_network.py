"""Where this machine stands as seen from a site: is the site this machine itself, or in its network?

IPv4 alone. Over IPv6 a running server finds out itself that Dest's address leads back to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from typing import Final

from qre.errors import QreError
from qre.kernel.netfilter.expressions import ANY
from qre.kernel.netfilter.forwarding import way_to
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket
from qre.kernel.udp.underlay_sockets import MARK

#: Addresses with so many leading bits in common count as one network: what a hoster's customers near us have.
_SHARED_BITS: Final = 16


@dataclass(frozen=True)
class OurNetwork:
    """``listens``: addresses and ports of servers of this machine. ``public``: the address that clients reach it at,
    where the machine does not have it itself."""

    listens: frozenset[tuple[IPv4Address, int]] = field(default_factory=frozenset)
    public: IPv4Address | None = None

    def is_itself(self, address: IPv4Address, port: int) -> bool:
        """Whether datagrams to there come to one of our own servers."""
        if address == self.public:
            return port in {own for _, own in self.listens} or not self.listens
        return any(own == port and (at == address or (at == ANY and _is_local(address))) for at, own in self.listens)

    def is_near(self, address: IPv4Address) -> bool | None:
        """Whether the site is in our network; None when our own public address is not known."""
        ours = self.public or _source_for(address)
        if ours is None or (ours.is_private and not address.is_private):
            return None
        return address in ip_network(f"{ours}/{_SHARED_BITS}", strict=False)


def _is_local(address: IPv4Address) -> bool:
    return _way(address)[1]


def _source_for(address: IPv4Address) -> IPv4Address | None:
    return _way(address)[0]


def _way(address: IPv4Address) -> tuple[IPv4Address | None, bool]:
    """The address that our packets to there bear, and whether the address is our own."""
    try:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            found = way_to(netlink, address, MARK)
    except QreError:
        return None, False
    if found is None or not isinstance(found.source, IPv4Address):
        return None, False
    return found.source, found.local
