"""Who the clients of a server are: by short id, the name, the addresses and the networks that a section gives one.

All clients hold the same public key, so a short id is the only thing that tells them apart. What a section gives to a
client belongs to nobody else. A short id without a section may have any address that no section has, and no network
behind it, unless it is the only one: then AllowedIPs beyond the tunnel's own networks are its.
"""

from __future__ import annotations

from collections.abc import Iterable

from qre.addresses import Address, Interface, Network
from qre.config.model import ClientSection, Profile
from qre.config.sections import less_own


class Identities:
    """``listed`` are RealityShortIds, ``own`` the device's interface addresses, ``allowed_ips`` the interface's."""

    def __init__(
        self,
        listed: Iterable[bytes] = (),
        sections: Iterable[ClientSection] = (),
        own: Iterable[Interface] = (),
        allowed_ips: Iterable[Network] = (),
    ) -> None:
        self.sections = {section.short_id: section for section in sections}
        #: Short ids that have no section.
        self.others = frozenset(listed) - self.sections.keys()
        #: Every short id that is let in.
        self.short_ids = self.others | self.sections.keys()
        self._owner = {address.ip: one.short_id for one in self.sections.values() for address in one.address}
        own = tuple(own)
        beyond = less_own(allowed_ips, own)
        self._behind = {one.short_id: less_own(one.allowed_ips, own) for one in self.sections.values()}
        #: AllowedIPs of the interface that are routed to the device and belong to no client.
        self.unowned: tuple[Network, ...] = ()
        if not self.sections and len(self.others) == 1:
            self._behind |= dict.fromkeys(self.others, beyond)
        else:
            given = {network for networks in self._behind.values() for network in networks}
            self.unowned = tuple(network for network in beyond if network not in given)

    def who(self, short_id: bytes) -> str:
        """The client's name, or else its short id."""
        section = self.sections.get(short_id)
        return section.name if section is not None else short_id.hex()

    def owner(self, address: Address) -> bytes | None:
        """The short id whose section has this address."""
        return self._owner.get(address)

    def reserved(self) -> Iterable[Address]:
        """Every address of a section."""
        return self._owner.keys()

    def behind(self, short_id: bytes) -> tuple[Network, ...]:
        """The networks that are routed to this client, and accepted from it, beside its addresses."""
        return self._behind.get(short_id, ())


def identities_of(profile: Profile) -> Identities:
    """Of a server's profile; nobody of a client's."""
    if profile.server is None:
        return Identities()
    return Identities(profile.server.short_ids, profile.server.clients, profile.address, profile.allowed_ips)
