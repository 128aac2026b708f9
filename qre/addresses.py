"""Types for addresses and networks of either family, used everywhere between the parser and the socket.

At run time each is one class, of which both families are members: a message has a field of one type, not of a union.
"""

from __future__ import annotations

from abc import ABCMeta
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    ip_network,
)

TYPE_CHECKING = False  # `typing` takes longer to load than all of this
if TYPE_CHECKING:
    from collections.abc import Iterable

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

_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def host_port(host: str, port: int) -> str:
    """As people write it: an IPv6 address in brackets (RFC 3986 §3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_ports(addresses: Iterable[Address], port: int) -> str:
    """As the profile has Listen."""
    return ", ".join(host_port(str(each), port) for each in addresses)


def listen_by_version(addresses: Iterable[Address]) -> dict[int, tuple[Address, ...]]:
    """What a server's addresses take, by version of IP: :: takes both."""
    found: dict[int, tuple[Address, ...]] = {}
    for each in addresses:
        taken = (IPv4Address(0), each) if each == IPv6Address(0) else (each,)
        found |= {it.version: (*found.get(it.version, ()), it) for it in taken}
    return dict(sorted(found.items()))


def ipv4_of_listen(addresses: Iterable[Address]) -> tuple[IPv4Address, ...]:
    """What a server's addresses take of IPv4: 0.0.0.0, which is every address, for ::, and nothing for any other of
    IPv6."""
    return tuple(each for each in listen_by_version(addresses).get(4, ()) if isinstance(each, IPv4Address))


def outer_networks(endpoint: str | None) -> tuple[Network, ...]:
    """Where packets of a client go whose server is ``endpoint``: a name may be anywhere. A server (None) answers whom
    it hears, and has its clients' networks in the main table."""
    if endpoint is None:
        return ()
    try:
        return (ip_network(endpoint),)
    except ValueError:
        return _EVERYWHERE


def keeps_apart(prefix: Network, outer: tuple[Network, ...]) -> bool:
    """Whether this prefix must be kept from the tunnel's own packets: a default route, and what they may go to. A
    name is taken for one of the public network: private prefixes stay where every program looks for them."""
    return prefix.prefixlen == 0 or any(
        prefix.version == network.version
        and prefix.overlaps(network)
        and not (network in _EVERYWHERE and prefix.is_private)
        for network in outer
    )


def default_versions(prefixes: Iterable[Network]) -> tuple[int, ...]:
    """The IP versions that these prefixes cover as a whole, by a default route or by its halves."""
    given = tuple(prefixes)
    return tuple(
        version
        for version in (4, 6)
        if any(whole.prefixlen == 0 for whole in collapse_addresses(_only(version, given)))
    )


def _only(version: int, prefixes: Iterable[Network]) -> list[IPv4Network]:
    # Either version: what this is given to takes both, but only in one list each.
    return [prefix for prefix in prefixes if prefix.version == version]  # type: ignore[misc]


def closed_beside(prefixes: Iterable[Network], protected: bool) -> tuple[int, ...]:
    """IPv6, when a tunnel takes all of IPv4 but not of IPv6, and this machine has it. None unless ``protected``."""
    return (6,) if protected and default_versions(prefixes) == (4,) and _has_ipv6() else ()


def _has_ipv6() -> bool:
    import socket  # few profiles come here

    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).close()
    except OSError:
        return False
    return True


def contains(network: Network, other: Network) -> bool:
    """Whether ``other`` lies within ``network``; never, when they are of different families."""
    return (
        network.version == other.version and network.prefixlen <= other.prefixlen and other.network_address in network
    )


def covering(
    ip: Address, addresses: Iterable[Interface], allowed_ips: Iterable[Network], outer: tuple[Network, ...]
) -> str:
    """What leads packets to ``ip`` into the tunnel, in words; empty when nothing does that is known here."""
    for interface in addresses:
        if ip in interface.network:
            return f"Address {interface}"
    for prefix in allowed_ips:
        if ip in prefix and not keeps_apart(prefix, outer):
            return f"AllowedIPs {prefix}"
    return ""
