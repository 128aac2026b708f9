"""Which TCP ports of an address something on this machine listens on."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from qre.kernel.netfilter.expressions import ANY
from qre.kernel.port_sockets import PortSocket, tcp_listeners


def taken_ports(address: IPv4Address) -> frozenset[int]:
    """Ports on which connections to ``address`` are answered here; for 0.0.0.0: those to any. Raises MachineError
    or UntrustedInputError."""
    listening = [*tcp_listeners(4), *tcp_listeners(6)]
    return frozenset(port for bound, port in _of_ipv4(listening) if ANY in (bound, address) or bound == address)


def _of_ipv4(listening: list[PortSocket]) -> Iterator[tuple[IPv4Address, int]]:
    """IPv4 addresses and ports of listening sockets; those of IPv6 alone are left out."""
    for address, port, alone in listening:
        if isinstance(address, IPv4Address):
            yield address, port
        elif address.ipv4_mapped is not None:
            yield address.ipv4_mapped, port
        elif address == IPv6Address(0) and not alone:
            yield ANY, port
