"""IPv4 servers from a network that has IPv6 alone, and a translator to IPv4 (NAT64, RFC 6146).

The network tells its translator's prefix as the AAAA records of a name that has only IPv4 addresses (RFC 7050); an
IPv4 address is written behind the prefix (RFC 6052). A name needs none of that where the network's name servers do it
(DNS64). Asked only when there was no route to the IPv4 address: a host with IPv4 does not ask for that name.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qre.errors import MachineError
from qre.visit.dest import Lookup, Resolved

NAME: Final = "ipv4only.arpa"
#: The addresses that the name has (RFC 7050 §2.2).
_KNOWN: Final = (IPv4Address("192.0.0.170"), IPv4Address("192.0.0.171"))
#: Bytes that a prefix may have (RFC 6052 §2.2), the usual one first.
_LENGTHS: Final = (12, 8, 7, 6, 5, 4)
#: The byte that is zero in all of them (bits 64 to 71).
_SKIPPED: Final = 8
_PUBLIC: Final = IPv6Address("64:ff9b::").packed[:12]


async def translated(found: Sequence[Resolved], lookup: Lookup) -> tuple[Resolved, ...]:
    """Where the translator has the IPv4 addresses of ``found``; nothing where there is none."""
    wanted = [(IPv4Address(ip), port) for family, (ip, port) in found if family == socket.AF_INET]
    if not wanted:
        return ()
    try:
        told = await lookup(NAME, 0, socket.AF_INET6)
    except MachineError:
        return ()
    known = prefixes(IPv6Address(ip) for family, (ip, _) in told if family == socket.AF_INET6)
    return tuple(
        (socket.AF_INET6, (str(embedded(prefix, ip)), port))
        for prefix in known
        for ip, port in wanted
        if prefix != _PUBLIC or ip.is_global  # RFC 6052 §3.1
    )


def prefixes(told: Iterable[IPv6Address]) -> tuple[bytes, ...]:
    """Of the translators, in the order in which the name's addresses tell them (RFC 7050 §3)."""
    found = (
        address.packed[:length] for address in told for length in _LENGTHS if _extracted(address, length) in _KNOWN
    )
    return tuple(dict.fromkeys(found))


def embedded(prefix: bytes, ip: IPv4Address) -> IPv6Address:
    """RFC 6052 §2.2. ``prefix``: of one of the lengths there."""
    whole = bytearray(prefix.ljust(16, b"\0"))
    for place, octet in zip(_places(len(prefix)), ip.packed, strict=True):
        whole[place] = octet
    return IPv6Address(bytes(whole))


def _extracted(address: IPv6Address, length: int) -> IPv4Address | None:
    whole = address.packed
    if whole[_SKIPPED]:
        return None
    return IPv4Address(bytes(whole[place] for place in _places(length)))


def _places(length: int) -> list[int]:
    return [place for place in range(length, length + 5) if place != _SKIPPED][:4]
