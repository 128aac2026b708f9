"""The capsules of CONNECT-IP (RFC 9297 §3.2, RFC 9484 §4.7): addresses requested and assigned, routes advertised.

A parser here raises only ``UntrustedInputError``, and its result is bounded by the length of its input. A range can
become two prefixes for each bit of an address: ``MAX_ROUTES`` bounds them. What the RFCs call malformed is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, summarize_address_range
from itertools import islice
from typing import Final

from qre.addresses import Interface, Network
from qre.errors import UntrustedInputError
from qre.wire.varint import encode_varint, encode_vector, read_bytes_untrusted, read_varint_untrusted

Address = IPv4Address | IPv6Address

#: Prefixes of one ROUTE_ADVERTISEMENT.
MAX_ROUTES: Final = 2048


class CapsuleType(enum.IntEnum):
    """RFC 9484 §8.2; others are skipped."""

    ADDRESS_ASSIGN = 0x01
    ADDRESS_REQUEST = 0x02
    ROUTE_ADVERTISEMENT = 0x03


@dataclass(frozen=True)
class RequestedAddress:
    """One entry of ADDRESS_REQUEST or ADDRESS_ASSIGN; in the latter ``request_id`` 0 answers no request."""

    request_id: int
    address: Interface


def encode_capsule(kind: int, value: bytes) -> bytes:
    """Type, length and value, RFC 9297 §3.2."""
    return encode_varint(kind) + encode_vector(value)


def encode_addresses(kind: CapsuleType, entries: Iterable[RequestedAddress]) -> bytes:
    """ADDRESS_ASSIGN or ADDRESS_REQUEST (RFC 9484 §4.7.1, §4.7.2)."""
    value = b"".join(
        encode_varint(entry.request_id)
        + bytes([entry.address.version])
        + entry.address.ip.packed
        + bytes([entry.address.network.prefixlen])
        for entry in entries
    )
    return encode_capsule(kind, value)


def encode_routes(routes: Iterable[Network]) -> bytes:
    """ROUTE_ADVERTISEMENT (RFC 9484 §4.7.3): all protocols, in the required order.

    Ranges must not overlap, so a network inside another one is left out.
    """
    value = b""
    before: Network | None = None
    for route in sorted(routes, key=lambda one: (one.version, one.network_address.packed, one.prefixlen)):
        if before is not None and before.version == route.version and route.network_address in before:
            continue
        before = route
        value += bytes([route.version]) + route.network_address.packed + route.broadcast_address.packed + b"\x00"
    return encode_capsule(CapsuleType.ROUTE_ADVERTISEMENT, value)


def read_capsule_untrusted(data: bytes, max_length: int) -> tuple[int, bytes, int] | None:
    """(type, value, length of the whole) of the capsule that ``data`` begins with; None while it is incomplete."""
    try:
        kind, at = read_varint_untrusted(data)
        length, at = read_varint_untrusted(data, at)
    except UntrustedInputError:
        return None
    if length > max_length:
        raise UntrustedInputError("capsule", "too long")
    end = at + length
    return (kind, data[at:end], end) if end <= len(data) else None


def parse_request_untrusted(value: bytes) -> tuple[RequestedAddress, ...]:
    """The entries of ADDRESS_REQUEST (RFC 9484 §4.7.2): at least one, each with a different request id other than
    0."""
    entries = parse_addresses_untrusted(value)
    numbers = {entry.request_id for entry in entries}
    if not entries or 0 in numbers or len(numbers) < len(entries):
        raise UntrustedInputError("capsule", "no address request, or request ids that are zero or repeated")
    return entries


def parse_addresses_untrusted(value: bytes) -> tuple[RequestedAddress, ...]:
    """The entries of ADDRESS_ASSIGN, maybe none (RFC 9484 §4.7.1)."""
    entries: list[RequestedAddress] = []
    at = 0
    while at < len(value):
        request_id, at = read_varint_untrusted(value, at)
        address, at = _read_interface_untrusted(value, at)
        entries.append(RequestedAddress(request_id, address))
    return tuple(entries)


def parse_routes_untrusted(value: bytes) -> tuple[Network, ...]:
    """The ranges of ROUTE_ADVERTISEMENT as prefixes; those for one protocol only are left out.

    §4.7.3: ascending by version, then protocol, then address, and never overlapping.
    """
    routes: list[Network] = []
    before = (0, 0, -1)  # version, protocol, last address
    at = 0
    while at < len(value):
        (version,), at = read_bytes_untrusted(value, at, 1)
        first, at = _read_address_untrusted(value, at, version)
        last, at = _read_address_untrusted(value, at, version)
        (protocol,), at = read_bytes_untrusted(value, at, 1)
        if int(first) > int(last):
            raise UntrustedInputError("capsule", "a route ends before it begins")
        if (version, protocol) < before[:2] or ((version, protocol) == before[:2] and int(first) <= before[2]):
            raise UntrustedInputError("capsule", "routes that overlap or are out of order")
        before = version, protocol, int(last)
        if protocol == 0:
            routes += islice(summarize_address_range(first, last), MAX_ROUTES + 1 - len(routes))
            if len(routes) > MAX_ROUTES:
                raise UntrustedInputError("capsule", "routes of too many prefixes")
    return tuple(routes)


def _read_address_untrusted(value: bytes, at: int, version: int) -> tuple[Address, int]:
    if version not in {4, 6}:
        raise UntrustedInputError("capsule", "neither IPv4 nor IPv6")
    packed, at = read_bytes_untrusted(value, at, 4 if version == 4 else 16)
    return IPv4Address(packed) if version == 4 else IPv6Address(packed), at


def _read_interface_untrusted(value: bytes, at: int) -> tuple[Interface, int]:
    (version,), at = read_bytes_untrusted(value, at, 1)
    address, at = _read_address_untrusted(value, at, version)
    (length,), at = read_bytes_untrusted(value, at, 1)
    if length > address.max_prefixlen:
        raise UntrustedInputError("capsule", "a prefix longer than its address")
    make = IPv4Interface if isinstance(address, IPv4Address) else IPv6Interface
    interface = make((address, length))
    if interface.ip != interface.network.network_address:
        raise UntrustedInputError("capsule", "an address with bits beyond its prefix")
    return interface, at
