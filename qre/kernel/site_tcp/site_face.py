"""Puts the table of ``ruleset`` in place, keeps it as it is wanted, and takes everything back.

What was found is in the table itself, so whoever comes after a killed daemon can undo it: the next daemon, its
clean-up, `down`. Which devices forward meanwhile: ``netfilter/guarded_devices``. IPv6 is passed where this machine
forwards it already: there is one switch for the whole machine, which QRE leaves alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from qre.addresses import Address
from qre.errors import QreError
from qre.kernel.netfilter.forwarding import (
    FORWARDING,
    Way,
    device_with,
    forwards_ipv6,
    name_of,
    settings_of_devices,
    way_to,
)
from qre.kernel.netfilter.guarded_devices import guarded_of, let_go, make_forward
from qre.kernel.netfilter.kept_table import KeptTable
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import (
    SITE_TCP,
    Record,
    table_of,
)
from qre.kernel.site_tcp.listeners import taken_ports
from qre.kernel.site_tcp.ruleset import Face, list_counters, read_counts, replacement
from qre.kernel.socket import NETLINK_ROUTE, NetlinkSocket
from qre.kernel.udp.underlay_sockets import MARK

HTTP: Final = 80
TAKEN: Final = "something listens on it"
_NO_ROUTE: Final = "there is no IPv{} route to Dest; see `ip route`"
_ON_THIS_MACHINE: Final = "Dest is an address of this machine; serve TCP there, or name another Dest"
_NO_ADDRESS: Final = {
    4: "Dest has no IPv4 address; name one that has, or set SiteTcp = off",
    6: "Dest has not answered over IPv6",
}
NO_FORWARDING: Final = "net.ipv6.conf.all.forwarding is off, and QRE leaves this switch of the whole machine alone"
_UNRESOLVED: Final = "Dest's address is not known yet"
_OFF: Final = "SiteTcp is off"
_LOOPBACK: Final = "lo"
#: Of documentation's networks (RFC 5737, RFC 9637), which nobody has: they lead where the default route does.
_ELSEWHERE: Final = {4: ip_address("198.51.100.1"), 6: ip_address("3fff::1")}


@dataclass(frozen=True)
class Wanted:
    """What a server's configuration asks for over one version of IP, and where Dest is. ``ports`` None: Listen's, and
    80."""

    device: str
    listen: Listening
    ports: tuple[int, ...] | None
    dest: Address | None
    dest_port: int
    ttl: int

    @property
    def version(self) -> int:
        """Of IP."""
        return self.listen.version

    def chosen(self) -> tuple[tuple[int, int], ...]:
        """Each port, and the one of Dest that it leads to."""
        own = self.listen.port
        ports = (own, HTTP) if self.ports is None else self.ports
        return tuple((port, self.dest_port if port == own else port) for port in dict.fromkeys(ports))


@dataclass(frozen=True)
class State:
    """What is so. ``why``: why nothing is passed on; ``taken``: ports that something else has."""

    why: str = ""
    ports: tuple[tuple[int, int], ...] = ()
    taken: tuple[int, ...] = ()


class SiteFace(KeptTable[Face]):
    """The table of one device for one version of IP."""

    key = "SiteTcp"

    def __init__(self, device: str, version: int) -> None:
        super().__init__(table_of(SITE_TCP[version], device))
        self.version = version
        self._counts: dict[int, int] = {}

    def look(self, wanted: Wanted) -> State:
        """Compare what is with what is wanted, and mend it. When it cannot be had, nothing of it stays."""
        try:
            return self._look(wanted)
        except (QreError, OSError) as error:
            with contextlib.suppress(QreError, OSError):
                self.undo()
            return State(why=str(error))

    def counts(self) -> Mapping[int, int]:
        """Connections that were passed, by port."""
        if self._applied is not None:
            self._remember_counts()
        return self._counts

    def _remember_counts(self) -> None:
        with contextlib.suppress(QreError):  # somebody has just removed the table: the next look makes it again
            self._counts |= read_counts(self._nft.run([list_counters(self.table)]))

    def closed(self) -> tuple[str, ...]:
        """Chains of others that drop what is forwarded, unless a rule of theirs lets it pass. Raises QreError."""
        return tuple(map(str, self._listing().closed_to(self.version)))

    @staticmethod
    def _noted(content: Face) -> Record:
        return Record(content.listen, {each.index: each.alone for each in content.guarded})

    def _look(self, wanted: Wanted) -> State:
        chosen = wanted.chosen()
        if not chosen:
            self.stay_off()
            return State(why=_OFF)
        self._off = False
        taken = frozenset[int]().union(*map(taken_ports, wanted.listen.addresses))
        free = tuple(pair for pair in chosen if pair[0] not in taken)
        state = State(ports=free, taken=tuple(port for port, _ in chosen if port in taken))
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            why, way = self._obstacle(netlink, wanted)
            if why or way is None or not free:
                self.undo()
                return State(why=why, taken=state.taken)
            self._put(netlink, wanted, free, way)
        return state

    def _obstacle(self, netlink: NetlinkSocket, wanted: Wanted) -> tuple[str, Way | None]:
        if wanted.dest is None:
            return _UNRESOLVED, None
        if wanted.dest.version != self.version:
            return _NO_ADDRESS[self.version], None
        if not can_be_sent_on(netlink, self.version):
            return NO_FORWARDING, None
        way = way_to(netlink, wanted.dest, MARK)
        if way is None or wanted.dest.is_multicast or wanted.dest.is_unspecified:
            return _NO_ROUTE.format(self.version), None
        return (_ON_THIS_MACHINE if way.local else ""), way

    def _put(
        self,
        netlink: NetlinkSocket,
        wanted: Wanted,
        ports: tuple[tuple[int, int], ...],
        way: Way,
    ) -> None:
        listing = self._listing()
        forwards = settings_of_devices(netlink, FORWARDING)
        stale = [
            own
            for own, record in listing.records.items()
            # one daemon has the port: the other is dead
            if own.family == self.table.family
            and own != self.table
            and record.listen
            and record.listen.meets(wanted.listen)
        ]
        devices = _devices(netlink, wanted.listen, way)
        own = self._own(listing)
        records = [*listing.records.values(), *filter(None, [own])]
        guarded = guarded_of(netlink, devices, records, forwards) if self.version == 4 else ()
        assert wanted.dest is not None
        face = Face(
            device=wanted.device,
            listen=wanted.listen,
            dest=(wanted.dest, wanted.dest_port),
            ports=ports,
            source=way.source,
            devices=tuple(devices.values()),
            guarded=guarded,
            ttl=wanted.ttl,
            quiet=listing.quiet(self.version),
        )
        for record in filter(None, (own, *(listing.records[each] for each in stale))):
            let_go(netlink, listing, record, kept=devices, dead=stale)
        there = self.table in listing.records
        if there:
            self._remember_counts()
        if stale or not there or face != self._applied:
            self._nft.run(replacement(face, self._counts, stale))
            self._applied = face
        make_forward(netlink, guarded, forwards)


def _devices(netlink: NetlinkSocket, listen: Listening, way: Way) -> dict[int, str]:
    """Where packets of such connections come in: from Dest, and from visitors."""
    listening = (way_in(netlink, each) for each in listen.addresses)
    indices = sorted({way.index, *(index for index in listening if index is not None)})
    named = {index: name_of(netlink, index) for index in indices}
    return {index: name for index, name in named.items() if name not in (None, _LOOPBACK) and name}


def can_be_sent_on(netlink: NetlinkSocket, version: int) -> bool:
    """Whether this machine sends packets of that version on, or can be made to. Raises QreError."""
    return version == 4 or forwards_ipv6(netlink)


def way_in(netlink: NetlinkSocket, listen: Address) -> int | None:
    """The index of the device where visitors come in: the one that has the address, else that of the default route.
    Raises MachineError or UntrustedInputError."""
    index = None if listen.is_unspecified else device_with(netlink, listen)
    if index is not None and name_of(netlink, index) != _LOOPBACK:
        return index
    default = way_to(netlink, _ELSEWHERE[listen.version], MARK)
    return default.index if default is not None else None
