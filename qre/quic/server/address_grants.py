"""Which inner addresses a client may have: the server's answer to ADDRESS_REQUEST (RFC 9484 §4.7.2).

A short id that is let in is granted an address when that lies inside one of the server's networks, is neither the
server's own nor the network or broadcast address, and belongs to no other client. What a client's section says
belongs to it alone, and it gets nothing else. Any other address belongs to the short id that holds it, in a session
or a handshake under way, or else to the one that had it last; and of each network no short id gets more than its
share. A second session of the same short id shares the addresses of the first until it replaces it. Sans-IO; the
caller chooses the keys that name holders.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from ipaddress import ip_interface

from qre.addresses import Address, Interface, Network
from qre.causes import Cause
from qre.config.sections import is_host_of
from qre.quic.server.address_leases import Leases
from qre.quic.server.identities import Identities

#: No QRE client requests more.
MAX_ADDRESSES = 8
#: The addresses of a client's session, and of the one that is to replace it.
_MOST_OF_A_NETWORK = 2 * MAX_ADDRESSES


class Denial(enum.Enum):
    """Why an address is not granted. The value is for people; it may end in the name of the client that has it."""

    UNKNOWN = "is asked for by a short id that is in no list"
    OUTSIDE = "is no client's address in the tunnel's networks"
    NOT_ITS = "is not in its section"
    OWNED = "belongs to client"
    HELD = "is in use by client"
    KEPT = "was last used by client"
    SHARE = "would be more than one client's share of the network"


#: What the client is told.
CAUSES = {
    Denial.UNKNOWN: Cause.ADDRESS_OUTSIDE,  # it is not told: the session is closed with CloseReason.REMOVED
    Denial.OUTSIDE: Cause.ADDRESS_OUTSIDE,
    Denial.NOT_ITS: Cause.ADDRESS_NOT_ITS,
    Denial.OWNED: Cause.ADDRESS_TAKEN,
    Denial.HELD: Cause.ADDRESS_TAKEN,
    Denial.KEPT: Cause.ADDRESS_TAKEN,
    Denial.SHARE: Cause.ADDRESS_SHARE,
}


@dataclass(frozen=True)
class Denied:
    """``other`` is the short id that has the address."""

    address: Address
    denial: Denial
    other: bytes | None = None


class Grants:
    """``own`` are the device's interface addresses; ``leases`` are changed by ``confirm`` alone."""

    def __init__(self, own: Iterable[Interface], identities: Identities, leases: Leases | None = None) -> None:
        self._own = tuple(own)
        self._identities = identities
        self._shares: dict[Network, int] = {}
        self.leases = leases or Leases()
        self._held: dict[Hashable, tuple[bytes, frozenset[Address]]] = {}

    @property
    def own(self) -> tuple[Interface, ...]:
        """The device's interface addresses, none of which is granted."""
        return self._own

    @own.setter
    def own(self, addresses: Iterable[Interface]) -> None:
        """A reload may change them; see ``still_its``."""
        self._own = tuple(addresses)
        self._shares.clear()

    @property
    def identities(self) -> Identities:
        """Who the clients are."""
        return self._identities

    @identities.setter
    def identities(self, identities: Identities) -> None:
        """A reload may change them; see ``still_its``."""
        self._identities = identities
        self._shares.clear()

    def ask(self, holder: Hashable, short_id: bytes, wanted: Iterable[Interface]) -> tuple[Interface, ...]:
        """Grant those of ``wanted`` that are free to ``holder``, as host addresses; maybe none."""
        granted: dict[Address, Interface] = {}
        for interface in list(wanted)[:MAX_ADDRESSES]:
            if self._judge(short_id, interface, granted.keys()) is None:
                granted[interface.ip] = ip_interface(f"{interface.ip}/{interface.max_prefixlen}")
        if granted:
            self._held[holder] = (short_id, frozenset(granted))
        return tuple(granted.values())

    def denials(self, short_id: bytes, wanted: Iterable[Interface]) -> list[Denied]:
        """What would not be granted, and why."""
        found = (self._judge(short_id, interface) for interface in list(wanted)[:MAX_ADDRESSES])
        return [denied for denied in found if denied is not None]

    def why_not(self, short_id: bytes, wanted: Iterable[Interface]) -> Cause:
        """What the client is told: of the first address that it may not have."""
        denials = self.denials(short_id, wanted)
        return CAUSES[denials[0].denial] if denials else Cause.ADDRESS_OUTSIDE

    def why_not_in_words(self, short_id: bytes, wanted: Iterable[Interface], granted: Iterable[Interface]) -> str:
        """Of everything that was not granted, and whose it is; empty when all was."""
        got = {address.ip for address in granted}
        return "; ".join(self.words(each) for each in self.denials(short_id, wanted) if each.address not in got)

    def words(self, denied: Denied) -> str:
        """One denial, for people."""
        other = f" {self.identities.who(denied.other)}" if denied.other is not None else ""
        return f"{denied.address} {denied.denial.value}{other}"

    def hold(self, holder: Hashable, short_id: bytes, addresses: Iterable[Address]) -> None:
        """A session of an earlier process keeps its addresses."""
        self._held[holder] = (short_id, frozenset(addresses))

    def held(self, holder: Hashable) -> frozenset[Address]:
        """What was granted to ``holder``."""
        return self._held.get(holder, (b"", frozenset()))[1]

    def move(self, holder: Hashable, to: Hashable) -> None:
        """A handshake has become a session: its grants move to ``to``."""
        if holder in self._held:
            self._held[to] = self._held.pop(holder)

    def free(self, holder: Hashable) -> None:
        """Everything granted to ``holder`` may be granted again; an unknown holder is ignored."""
        self._held.pop(holder, None)

    def still_its(self, short_id: bytes, addresses: Iterable[Address]) -> bool:
        """Whether a new configuration leaves a session what it was granted: its networks, and its sections."""
        addresses = tuple(addresses)
        if any(self._network(ip_interface(address)) is None for address in addresses):
            return False
        section = self.identities.sections.get(short_id)
        if section is not None:
            mine = {address.ip for address in section.address}
            return all(address in mine for address in addresses)
        return all(self.identities.owner(address) is None for address in addresses)

    def routes(self) -> tuple[Network, ...]:
        """The routes to advertise: everything, for each family of our addresses."""
        versions = {address.version for address in self._own}
        everything = ((4, ip_interface("0.0.0.0/0").network), (6, ip_interface("::/0").network))
        return tuple(network for version, network in everything if version in versions)

    def _judge(self, short_id: bytes, interface: Interface, asked: Iterable[Address] = ()) -> Denied | None:
        """Why this address is not granted; None: it is. ``asked`` are granted by the same request."""
        address = interface.ip
        if short_id not in self.identities.short_ids:
            return Denied(address, Denial.UNKNOWN)
        network = self._network(interface)
        if network is None:
            return Denied(address, Denial.OUTSIDE)
        owner = self.identities.owner(address)
        if owner is not None and owner != short_id:
            return Denied(address, Denial.OWNED, owner)
        if short_id in self.identities.sections:
            return Denied(address, Denial.NOT_ITS) if owner is None else None
        for other, held in self._held.values():
            if other != short_id and address in held:
                return Denied(address, Denial.HELD, other)
        last = self.leases.holder(address)
        if last is not None and last != short_id and last in self.identities.others:
            return Denied(address, Denial.KEPT, last)
        has = {each for other, held in self._held.values() if other == short_id for each in held} | set(asked)
        if address not in has and sum(each in network.network for each in has) >= self._share(network):
            return Denied(address, Denial.SHARE)
        return None

    def _network(self, interface: Interface) -> Interface | None:
        """In which of our own networks this may be a client's address."""
        if any(interface.ip == own.ip for own in self._own):
            return None
        return next((own for own in self._own if is_host_of(interface, own)), None)

    def _share(self, own: Interface) -> int:
        """How many addresses of one network a short id without a section may have at a time."""
        network = own.network
        known = self._shares.get(network)
        if known is not None:
            return known
        hosts = network.num_addresses - (2 if network.prefixlen < network.max_prefixlen - 1 else 0)
        hosts -= sum(each.ip in network for each in self._own)
        hosts -= sum(address in network for address in self.identities.reserved())
        share = max(1, min(_MOST_OF_A_NETWORK, hosts // max(1, len(self.identities.others))))
        self._shares[network] = share
        return share
