"""The capsules of CONNECT-IP (RFC 9297 §3.2, RFC 9484 §4.7): addresses asked for and assigned, routes advertised.

A parser here raises only ``UntrustedInputError``, and makes no more of its input than the input is long.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, summarize_address_range

from aioquic.buffer import Buffer, BufferReadError, encode_uint_var

from qre.config.model import Interface, Network
from qre.errors import UntrustedInputError

Address = IPv4Address | IPv6Address


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
    return encode_uint_var(kind) + encode_uint_var(len(value)) + value


def encode_addresses(kind: CapsuleType, entries: Iterable[RequestedAddress]) -> bytes:
    """ADDRESS_ASSIGN or ADDRESS_REQUEST (RFC 9484 §4.7.1, §4.7.2)."""
    value = b"".join(
        encode_uint_var(entry.request_id)
        + bytes([entry.address.version])
        + entry.address.ip.packed
        + bytes([entry.address.network.prefixlen])
        for entry in entries
    )
    return encode_capsule(kind, value)


def encode_routes(routes: Iterable[Network]) -> bytes:
    """ROUTE_ADVERTISEMENT (RFC 9484 §4.7.3): all protocols, in the order that it wants."""
    ordered = sorted(set(routes), key=lambda route: (route.version, route.network_address.packed))
    value = b"".join(
        bytes([route.version]) + route.network_address.packed + route.broadcast_address.packed + b"\x00"
        for route in ordered
    )
    return encode_capsule(CapsuleType.ROUTE_ADVERTISEMENT, value)


def pull_capsule_untrusted(data: bytes, max_length: int) -> tuple[int, bytes, int] | None:
    """(type, value, length of the whole) of the capsule that ``data`` begins with; None while it is incomplete."""
    buf = Buffer(data=data)
    try:
        kind = buf.pull_uint_var()
        length = buf.pull_uint_var()
    except BufferReadError:
        return None
    if length > max_length:
        raise UntrustedInputError("capsule", "too long")
    end = buf.tell() + length
    return (kind, data[buf.tell() : end], end) if end <= len(data) else None


def parse_addresses_untrusted(value: bytes) -> tuple[RequestedAddress, ...]:
    """The entries of ADDRESS_REQUEST or ADDRESS_ASSIGN."""
    buf = Buffer(data=value)
    entries: list[RequestedAddress] = []
    try:
        while not buf.eof():
            request_id = buf.pull_uint_var()
            entries.append(RequestedAddress(request_id, _pull_interface_untrusted(buf)))
    except BufferReadError as error:
        raise UntrustedInputError("capsule", "an address is cut off") from error
    return tuple(entries)


def parse_routes_untrusted(value: bytes) -> tuple[Network, ...]:
    """The ranges of ROUTE_ADVERTISEMENT as prefixes; those for one protocol only are left out."""
    buf = Buffer(data=value)
    routes: list[Network] = []
    try:
        while not buf.eof():
            version = buf.pull_uint8()
            first = _pull_address_untrusted(buf, version)
            last = _pull_address_untrusted(buf, version)
            protocol = buf.pull_uint8()
            if int(first) > int(last):
                raise UntrustedInputError("capsule", "a route ends before it begins")
            if protocol == 0:
                routes += summarize_address_range(first, last)
    except BufferReadError as error:
        raise UntrustedInputError("capsule", "a route is cut off") from error
    return tuple(routes)


def _pull_address_untrusted(buf: Buffer, version: int) -> Address:
    match version:
        case 4:
            return IPv4Address(buf.pull_bytes(4))
        case 6:
            return IPv6Address(buf.pull_bytes(16))
        case _:
            raise UntrustedInputError("capsule", "neither IPv4 nor IPv6")


def _pull_interface_untrusted(buf: Buffer) -> Interface:
    address = _pull_address_untrusted(buf, buf.pull_uint8())
    length = buf.pull_uint8()
    if length > address.max_prefixlen:
        raise UntrustedInputError("capsule", "a prefix longer than its address")
    return IPv4Interface((address, length)) if isinstance(address, IPv4Address) else IPv6Interface((address, length))
