"""Which TCP ports of an address something on this machine listens on."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from qre.addresses import Address
from qre.kernel.netfilter.expressions import ANY
from qre.kernel.port_sockets import PortSocket, tcp_listeners


def taken_ports(address: Address) -> frozenset[int]:
    """Ports on which connections to ``address`` are answered here; for 0.0.0.0 and :: those to any of that version.
    Raises MachineError or UntrustedInputError."""
    listening = tcp_listeners(6)
    of_version = _of_ipv4([*tcp_listeners(4), *listening]) if address.version == 4 else _of_ipv6(listening)
    return frozenset(
        port for bound, port in of_version if bound == address or bound.is_unspecified or address.is_unspecified
    )


def _of_ipv6(listening: list[PortSocket]) -> Iterator[tuple[Address, int]]:
    return (
        (address, port)
        for address, port, _ in listening
        if isinstance(address, IPv6Address) and address.ipv4_mapped is None
    )


def _of_ipv4(listening: list[PortSocket]) -> Iterator[tuple[Address, int]]:
    """IPv4 addresses and ports of listening sockets; those of IPv6 alone are left out."""
    for address, port, alone in listening:
        if isinstance(address, IPv4Address):
            yield address, port
        elif address.ipv4_mapped is not None:
            yield address.ipv4_mapped, port
        elif address == IPv6Address(0) and not alone:
            yield ANY, port
