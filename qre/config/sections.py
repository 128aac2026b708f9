"""``[Client NAME]`` sections of a server's profile: what belongs to which client, and to nobody else.

Read only for a profile that has sections. All errors are reported at once, with line, section and key; those that
concern two sections are reported at the second and name the first. No error repeats a short id.
"""

from __future__ import annotations

from qre.addresses import contains
from qre.config import values as v
from qre.config.keys import SECTION_KEYS
from qre.config.model import ClientSection
from qre.config.server_places import parse_endpoints
from qre.config.syntax import SECTION, Entry, Problems, SectionProblems, Values
from qre.ends import MAX_CLIENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from qre.addresses import Interface, Network
    from qre.config.model import HostPort

#: Networks behind all clients together: each is a route of the device.
MAX_NETWORKS = 1024
#: Prefixes of one session, its addresses included (qre.ko's bound, and the messages').
MAX_PREFIXES = 256


def parse_sections(
    entries: list[Entry], problems: Problems, own: tuple[Interface, ...]
) -> tuple[ClientSection, ...] | None:
    """The sections of ``entries``, of which the first begins one; ``own`` are the server's addresses. None when
    something is wrong, which is recorded."""
    sections: list[_Section] = []
    for entry in entries:
        if entry.key == SECTION:
            sections.append(_Section(entry, problems))
        else:
            sections[-1].entries.append(entry)
    if len(sections) > MAX_CLIENTS:
        problems.add(sections[MAX_CLIENTS].header.line, SECTION, f"more than {MAX_CLIENTS} clients", "remove some")
        return None
    for section in sections:
        section.parse(own)
    if sum(len(section.allowed_ips) for section in sections) > MAX_NETWORKS:
        remedy = "write fewer, larger networks"
        problems.add(0, "AllowedIPs", f"all clients together have more than {MAX_NETWORKS} networks", remedy)
        return None
    _compare(sections)
    if any(section.broken for section in sections):
        return None
    return tuple(
        ClientSection(
            section.header.text, section.short_id or b"", section.address, section.allowed_ips, section.endpoints
        )
        for section in sections
    )


class _Section:
    """One section while it is read."""

    def __init__(self, header: Entry, problems: Problems) -> None:
        self.header = header
        self.problems = SectionProblems(problems, header)
        self.entries: list[Entry] = []
        self.short_id: bytes | None = None
        self.address: tuple[Interface, ...] = ()
        self.allowed_ips: tuple[Network, ...] = ()
        self.endpoints: tuple[HostPort, ...] = ()
        self.values = Values([], self.problems, SECTION_KEYS)

    @property
    def broken(self) -> bool:
        return self.short_id is None or not self.address

    def add(self, key: str, why: str, remedy: str) -> None:
        self.problems.add(self.values.line(key), key, why, remedy)

    def parse(self, own: tuple[Interface, ...]) -> None:
        values = self.values = Values(self.entries, self.problems, SECTION_KEYS)
        if not v.is_profile_name(self.header.text):
            remedy = "write [Client NAME] with 1 to 64 of the ASCII letters, digits, `.`, `-`, `_`, no leading `.`"
            self.problems.add(0, "", "it has no valid name", remedy)
        self.short_id = values.require("ShortId", v.parse_section_short_id)
        self.address = values.require("Address", v.parse_hosts) or ()
        self.allowed_ips = values.get("AllowedIPs", v.parse_networks) or ()
        self.endpoints = values.get("Endpoint", parse_endpoints) or ()
        if own:
            self._check_addresses(own)
            self._check_networks(own)

    def _check_addresses(self, own: tuple[Interface, ...]) -> None:
        networks = ", ".join(str(each.network) for each in own)
        for address in self.address:
            if any(address.ip == each.ip for each in own):
                self.add("Address", f"{address.ip} is the server's own address", "give the client another")
            elif not any(is_host_of(address, each) for each in own):
                remedy = "write one of them, or change the Address of the interface"
                self.add("Address", f"{address.ip} is not an address of a host in {networks}", remedy)

    def _check_networks(self, own: tuple[Interface, ...]) -> None:
        for network in self.allowed_ips:
            within = next((each.network for each in own if contains(each.network, network)), None)
            if within is not None:
                remedy = "remove it, and write the client's own addresses in Address"
                self.add("AllowedIPs", f"{network} is inside the tunnel's own network {within}", remedy)
        count = len(self.address) + len(less_own(self.allowed_ips, own))
        if count > MAX_PREFIXES:
            why = f"with Address they are {count} prefixes, more than {MAX_PREFIXES}"
            self.add("AllowedIPs", why, "write fewer, larger networks")


def _compare(sections: list[_Section]) -> None:
    """Nothing may belong to two clients."""
    names: dict[str, _Section] = {}
    short_ids: dict[bytes, _Section] = {}
    addresses: dict[Interface, _Section] = {}
    taken = _Taken()
    for section in sections:
        first = names.setdefault(section.header.text, section)
        if first is not section and section.header.text:
            why = f"this name is given twice: line {first.header.line} has it already"
            section.problems.add(0, "", why, "give each client a name of its own")
        if section.short_id is not None and (first := short_ids.setdefault(section.short_id, section)) is not section:
            remedy = "give each client one of its own, with `qre-tool genshortid`"
            section.add("ShortId", f"it is that of {_named(first)}, too", remedy)
        for address in section.address:
            if (first := addresses.setdefault(address, section)) is not section:
                section.add("Address", f"{address.ip} belongs to {_named(first)} already", "give it to one of them")
        for network in section.allowed_ips:
            overlap = taken.find(network, section)
            if overlap is not None:
                other, first = overlap
                why = f"{network} overlaps {other}, which belongs to {_named(first)}"
                section.add("AllowedIPs", why, "give each network to one client")
            taken.add(network, section)


class _Taken:
    """Networks by their bits: finds an overlap in as many steps as an address has bits."""

    def __init__(self) -> None:
        self._networks: dict[tuple[int, int, int], tuple[Network, _Section]] = {}
        #: Of every network that contains some: one of them each of two sections.
        self._inside: dict[tuple[int, int, int], list[tuple[Network, _Section]]] = {}

    def add(self, network: Network, section: _Section) -> None:
        self._networks.setdefault(_bits(network, network.prefixlen), (network, section))
        for length in range(network.prefixlen):
            known = self._inside.setdefault(_bits(network, length), [])
            if len(known) < 2 and all(other is not section for _, other in known):
                known.append((network, section))

    def find(self, network: Network, section: _Section) -> tuple[Network, _Section] | None:
        """A network of another section that overlaps ``network``."""
        around = (self._networks.get(_bits(network, length)) for length in range(network.prefixlen + 1))
        found = (*around, *self._inside.get(_bits(network, network.prefixlen), ()))
        return next((each for each in found if each is not None and each[1] is not section), None)


def _bits(network: Network, length: int) -> tuple[int, int, int]:
    return network.version, length, int(network.network_address) >> network.max_prefixlen - length


def _named(section: _Section) -> str:
    line = f" (line {section.header.line})" if section.header.line else ""
    return f"[Client {section.header.text}]{line}"


def is_host_of(address: Interface, own: Interface) -> bool:
    """Whether a host in the network of ``own`` may have ``address``: not the network's own, nor its broadcast."""
    network = own.network
    if own.version != address.version or address.ip not in network:
        return False
    wide = network.prefixlen < network.max_prefixlen - 1
    return not wide or address.ip not in {network.network_address, network.broadcast_address}


def less_own(networks: Iterable[Network], own: Iterable[Interface]) -> tuple[Network, ...]:
    """``networks`` without the tunnel's own networks, whose addresses belong to the clients that have them."""
    left = list(networks)
    for mine in {interface.network for interface in own}:
        left = [piece for network in left for piece in _less(network, mine)]
    return tuple(sorted(left, key=lambda network: (network.version, network)))


def _less(network: Network, mine: Network) -> list[Network]:
    if network.version != mine.version or not network.overlaps(mine):
        return [network]
    return [] if contains(mine, network) else list(network.address_exclude(mine))  # type: ignore[arg-type]  # of one version
