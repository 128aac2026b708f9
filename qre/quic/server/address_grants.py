"""Which inner addresses a client may have: the server's answer to ADDRESS_REQUEST (RFC 9484 §4.7.2).

An address is granted when it lies inside one of the server's networks, is neither the server's own nor the network or
broadcast address, and is not held by a live session of *another* short id. A second session of the same short id
shares the addresses of the first until it replaces it. Sans-IO; the caller chooses the keys that name holders.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from ipaddress import ip_interface

from qre.addresses import Address, Interface, Network

#: No QRE client requests more.
MAX_ADDRESSES = 8


class Grants:
    """``own`` are the device's interface addresses."""

    def __init__(self, own: Iterable[Interface]) -> None:
        self._own = tuple(own)
        self._held: dict[Hashable, tuple[bytes, frozenset[object]]] = {}

    @property
    def own(self) -> tuple[Interface, ...]:
        """The device's interface addresses, none of which is granted."""
        return self._own

    @own.setter
    def own(self, addresses: Iterable[Interface]) -> None:
        """A reload may change them; earlier grants stay with their holders."""
        self._own = tuple(addresses)

    def ask(self, holder: Hashable, short_id: bytes, wanted: Iterable[Interface]) -> tuple[Interface, ...]:
        """Grant those of ``wanted`` that are free to ``holder``, as host addresses; maybe none."""
        taken = {address for other, held in self._held.values() if other != short_id for address in held}
        granted: dict[object, Interface] = {}
        for interface in list(wanted)[:MAX_ADDRESSES]:
            if interface.ip not in taken and self._may_have(interface):
                granted[interface.ip] = ip_interface(f"{interface.ip}/{interface.max_prefixlen}")
        if granted:
            self._held[holder] = (short_id, frozenset(granted))
        return tuple(granted.values())

    def hold(self, holder: Hashable, short_id: bytes, addresses: Iterable[Address]) -> None:
        """A session of an earlier process keeps its addresses."""
        self._held[holder] = (short_id, frozenset(addresses))

    def move(self, holder: Hashable, to: Hashable) -> None:
        """A handshake has become a session: its grants move to ``to``."""
        if holder in self._held:
            self._held[to] = self._held.pop(holder)

    def free(self, holder: Hashable) -> None:
        """Everything granted to ``holder`` may be granted again; an unknown holder is ignored."""
        self._held.pop(holder, None)

    def routes(self) -> tuple[Network, ...]:
        """The routes to advertise: everything, for each family of our addresses."""
        versions = {address.version for address in self._own}
        everything = ((4, ip_interface("0.0.0.0/0").network), (6, ip_interface("::/0").network))
        return tuple(network for version, network in everything if version in versions)

    def _may_have(self, interface: Interface) -> bool:
        address = interface.ip
        if any(address == own.ip for own in self._own):
            return False
        for own in self._own:
            network = own.network
            if own.version != interface.version or address not in network:
                continue
            wide = network.prefixlen < network.max_prefixlen - 1
            return not wide or address not in {network.network_address, network.broadcast_address}
        return False
