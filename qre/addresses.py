"""Types for addresses and networks of either family, used everywhere between the parser and the socket.

At run time each is one class, of which both families are members: a message has a field of one type, not of a union.
"""

from __future__ import annotations

from abc import ABCMeta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

TYPE_CHECKING = False  # `typing` takes longer to load than all of this
if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Interface = IPv4Interface | IPv6Interface
    Network = IPv4Network | IPv6Network
else:

    def _either(name: str, *members: type) -> type:
        kind = ABCMeta(name, (), {})
        for member in members:
            kind.register(member)
        return kind

    #: A host's address.
    Address = _either("Address", IPv4Address, IPv6Address)
    #: A host's address with the length of its network's prefix.
    Interface = _either("Interface", IPv4Interface, IPv6Interface)
    #: A prefix; no bit beyond its length is set.
    Network = _either("Network", IPv4Network, IPv6Network)
