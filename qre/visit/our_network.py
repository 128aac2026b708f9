"""Where this machine stands as seen from a site: is the site this machine itself, or in its network?"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from qre.addresses import Address, listen_by_version
from qre.errors import QreError
from qre.kernel.netfilter.forwarding import way_to
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket
from qre.kernel.udp.underlay_sockets import MARK

#: Addresses with so many leading bits in common count as one network: what a hoster's customers near us have.
_SHARED_BITS: Final = {4: 16, 6: 32}


@dataclass(frozen=True)
class OurNetwork:
    """``listens``: addresses and ports of servers of this machine. ``public``: the address that clients reach it at,
    where the machine does not have it itself."""

    listens: frozenset[tuple[Address, int]] = field(default_factory=frozenset)
    public: Address | None = None

    def is_itself(self, address: Address, port: int) -> bool:
        """Whether datagrams to there come to one of our own servers."""
        if address == self.public:
            return port in {own for _, own in self.listens} or not self.listens
        at = listen_by_version(ip for ip, own in self.listens if own == port).get(address.version, ())
        return address in at or (any(ip.is_unspecified for ip in at) and _is_local(address))

    def is_near(self, address: Address) -> bool | None:
        """Whether the site is in our network; None when our own public address is not known."""
        public = self.public if self.public is not None and self.public.version == address.version else None
        ours = public or _source_for(address)
        if ours is None or (ours.is_private and not address.is_private):
            return None
        return address in ip_network(f"{ours}/{_SHARED_BITS[address.version]}", strict=False)


def _is_local(address: Address) -> bool:
    return _way(address)[1]


def _source_for(address: Address) -> Address | None:
    return _way(address)[0]


def _way(address: Address) -> tuple[Address | None, bool]:
    """The address that our packets to there bear, and whether the address is our own."""
    try:
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            found = way_to(netlink, address, MARK)
    except QreError:
        return None, False
    return (found.source, found.local) if found is not None else (None, False)
