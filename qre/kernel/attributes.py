"""Netlink attributes of the family qre as bytes: those of a request packed, those of an answer read and checked.

The layout is RFC 3549's TLV. The numbers are those of ``abi``, and the types are stated where an attribute is used,
so that no object with a printable form ever holds a key. Every attribute of an answer is checked for its length and
its bounds; a reader here raises only ``UntrustedInputError``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from qre.addresses import Address, Network
from qre.dataplane.protocol import SessionInstall, SessionUpdate, Underlay
from qre.errors import InternalError, UntrustedInputError
from qre.kernel.abi import ALLOWED_IP, CID_MAX, IPV6_SIZE, Attribute
from qre.kernel.abi import CID as CID_LAYOUT

_HEADER = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_U64_MAX = (1 << 63) - 1  # as much as qre.dataplane.protocol's messages carry


class Request:
    """The attributes of one request. Shows none of their values."""

    def __init__(self) -> None:
        self._encoded: list[tuple[int, bytes]] = []

    def __repr__(self) -> str:
        return f"Request({', '.join(Attribute(kind).name for kind, _ in self._encoded)})"

    def put(self, attribute: Attribute, value: bytes) -> None:
        """Append the attribute with ``value`` as it is."""
        self._encoded.append((attribute, value))

    def flag(self, attribute: Attribute, wanted: bool) -> None:
        """An attribute without a value (NLA_FLAG); absent unless ``wanted``."""
        if wanted:
            self.put(attribute, b"")

    def u8(self, attribute: Attribute, value: int) -> None:
        """8 bits."""
        self._pack(attribute, "=B", value)

    def u16(self, attribute: Attribute, value: int) -> None:
        """16 bits, in the machine's byte order."""
        self._pack(attribute, "=H", value)

    def u32(self, attribute: Attribute, value: int) -> None:
        """32 bits, in the machine's byte order."""
        self._pack(attribute, "=I", value)

    def u64(self, attribute: Attribute, value: int) -> None:
        """64 bits, in the machine's byte order."""
        self._pack(attribute, "=Q", value)

    def port(self, attribute: Attribute, value: int) -> None:
        """16 bits in network byte order."""
        self._pack(attribute, "!H", value)

    def _pack(self, attribute: Attribute, layout: str, value: int) -> None:
        try:
            self.put(attribute, struct.pack(layout, value))
        except struct.error:
            raise InternalError(attribute.name, "the number does not fit") from None

    def ipv4(self, attribute: Attribute, value: Address) -> None:
        """4 bytes in network byte order. Raises InternalError for an address of another family."""
        if value.version != 4:
            raise InternalError(attribute.name, "not an IPv4 address")
        self.put(attribute, value.packed)

    def ip(self, ipv4: Attribute, ipv6: Attribute, value: Address) -> None:
        """The address, of either version, as the attribute that is for its version."""
        self.put(ipv4 if value.version == 4 else ipv6, value.packed)

    def allowed_ips(self, networks: Iterable[Network]) -> None:
        """An array of struct qre_allowed_ip."""
        self.put(
            Attribute.ALLOWED_IPS,
            b"".join(
                ALLOWED_IP.pack(each.version, each.prefixlen, each.network_address.packed.ljust(16, b"\0"))
                for each in networks
            ),
        )

    def text(self, attribute: Attribute, value: str) -> None:
        """UTF-8 with a final NUL (NLA_NUL_STRING)."""
        self.put(attribute, value.encode() + b"\0")

    def encode(self) -> bytes:
        """All attributes in the order in which they were put."""
        return b"".join(encode_attribute(kind, value) for kind, value in self._encoded)

    def at(self, offset: int) -> Attribute | None:
        """The attribute that byte ``offset`` of the encoded request belongs to."""
        start = 0
        for kind, value in self._encoded:
            start += len(encode_attribute(kind, value))
            if 0 <= offset < start:
                return Attribute(kind)
        return None


def encode_attribute(kind: int, value: bytes) -> bytes:
    """Header, ``value`` and padding to 4 bytes (struct nlattr)."""
    length = _HEADER.size + len(value)
    return _HEADER.pack(length, kind) + value + bytes(-length % 4)


def split_attributes_untrusted(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute."""
    offset = 0
    while offset < len(data):
        if offset + _HEADER.size > len(data):
            raise UntrustedInputError("an attribute's header is cut short")
        length, kind = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise UntrustedInputError(f"attribute {kind & _TYPE_MASK} has an impossible length")
        yield kind & _TYPE_MASK, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def int_untrusted(fields: Mapping[int, bytes], kind: int, size: int) -> int:
    """The attribute ``kind`` of the family's description, a number of ``size`` bytes."""
    value = fields.get(kind, b"")
    if len(value) != size:
        raise UntrustedInputError(f"attribute {kind} of the family is not a number of {size} bytes")
    return int.from_bytes(value, sys.byteorder)


def read_attributes_untrusted(data: bytes) -> Fields:
    """The attributes of an answer; none may appear twice."""
    found: dict[int, bytes] = {}
    for kind, value in split_attributes_untrusted(data):
        if kind in found and kind != Attribute.PAD:
            raise UntrustedInputError(f"attribute {kind} appears twice")
        found[kind] = value
    return Fields(found)


class Fields:
    """The attributes of an answer, by type. Each reader returns None for one that is absent."""

    def __init__(self, found: Mapping[int, bytes]) -> None:
        self._found = found

    def has(self, attribute: Attribute) -> bool:
        """Whether the attribute is present: how a flag is read."""
        return attribute in self._found

    def octets(self, attribute: Attribute, least: int, most: int | None = None) -> bytes | None:
        """Between ``least`` and ``most`` bytes; exactly ``least`` without ``most``."""
        value = self._found.get(attribute)
        if value is not None and not least <= len(value) <= (least if most is None else most):
            raise UntrustedInputError(f"{attribute.name} has a length of {len(value)}")
        return value

    def _number(self, attribute: Attribute, layout: str, most: int) -> int | None:
        value = self.octets(attribute, struct.calcsize(layout))
        if value is None:
            return None
        (number,) = struct.unpack(layout, value)
        if number > most:
            raise UntrustedInputError(f"{attribute.name} is {number}")
        return int(number)

    def u8(self, attribute: Attribute, most: int = 0xFF) -> int | None:
        """8 bits. Raises UntrustedInputError when the value exceeds ``most``."""
        return self._number(attribute, "=B", most)

    def u16(self, attribute: Attribute) -> int | None:
        """16 bits, in the machine's byte order."""
        return self._number(attribute, "=H", 0xFFFF)

    def u32(self, attribute: Attribute) -> int | None:
        """32 bits, in the machine's byte order."""
        return self._number(attribute, "=I", 0xFFFFFFFF)

    def u64(self, attribute: Attribute, most: int = _U64_MAX) -> int | None:
        """64 bits, in the machine's byte order. Raises UntrustedInputError when the value exceeds ``most``."""
        return self._number(attribute, "=Q", most)

    def port(self, attribute: Attribute) -> int | None:
        """16 bits in network byte order."""
        return self._number(attribute, "!H", 0xFFFF)

    def ip(self, ipv4: Attribute, ipv6: Attribute) -> Address | None:
        """An address that is told by the attribute of its version: 4 or 16 bytes in network byte order."""
        four, six = self.octets(ipv4, 4), self.octets(ipv6, IPV6_SIZE)
        if six is None:
            return None if four is None else IPv4Address(four)
        if four is not None:
            raise UntrustedInputError(f"{ipv4.name} and {ipv6.name} are both there")
        return IPv6Address(six)

    def text(self, attribute: Attribute, most: int) -> str | None:
        """A string of at most ``most`` bytes, its terminating zero not counted."""
        value = self.octets(attribute, 0, most + 1)
        return None if value is None else value.rstrip(b"\0").decode("utf-8", "replace")

    def nest(self, attribute: Attribute) -> bytes | None:
        """The bytes inside a nested attribute, to be parsed in turn."""
        return self._found.get(attribute)

    def cids(self, attribute: Attribute, most: int) -> tuple[bytes, ...]:
        """An array of struct qre_cid."""
        value = self._array(attribute, CID_LAYOUT.size, most)
        found = []
        for length, octets in CID_LAYOUT.iter_unpack(value):
            if not 1 <= length <= CID_MAX:
                raise UntrustedInputError(f"{attribute.name} holds a connection ID of {length} bytes")
            found.append(octets[:length])
        return tuple(found)

    def structs(self, attribute: Attribute, layout: struct.Struct, most: int) -> list[tuple[Any, ...]]:
        """An array of at most ``most`` structs of this layout."""
        return list(layout.iter_unpack(self._array(attribute, layout.size, most)))

    def _array(self, attribute: Attribute, size: int, most: int) -> bytes:
        value = self._found.get(attribute, b"")
        if len(value) % size or len(value) > size * most:
            raise UntrustedInputError(f"{attribute.name} has a length of {len(value)}")
        return value


# --- requests about sessions ---


def install_request(install: SessionInstall, socket_fd: int | None = None) -> Request:
    """The attributes of SESSION_INSTALL without the device."""
    request = Request()
    request.put(Attribute.SESSION_ID, install.session_id)
    request.put(Attribute.CID, install.connection_id)
    request.put(Attribute.CLIENT_CID, install.client_connection_id)
    request.put(Attribute.TX_KEY, install.keys.tx_key)
    request.put(Attribute.RX_KEY, install.keys.rx_key)
    request.put(Attribute.TX_IV, install.keys.tx_iv)
    request.put(Attribute.RX_IV, install.keys.rx_iv)
    request.put(Attribute.TX_HP_KEY, install.tx_hp_key)
    request.put(Attribute.RX_HP_KEY, install.rx_hp_key)
    _put_next(request, install)
    request.u64(Attribute.KEY_EPOCH, install.key_epoch)
    request.u64(Attribute.PACKET_NUMBER, install.packet_number)
    put_underlay(request, install.underlay)
    if install.allowed_ips:
        request.allowed_ips(install.allowed_ips)
    request.put(Attribute.SHORT_ID, install.short_id)
    request.flag(Attribute.HOLD, install.held)
    request.u64(Attribute.IDLE_MS, install.idle_timeout_ms)
    request.u64(Attribute.KEEPALIVE_MS, install.keepalive_ms)
    request.u8(Attribute.ACK_DELAY_EXPONENT, install.ack_delay_exponent)
    request.u16(Attribute.MAX_ACK_DELAY_MS, install.max_ack_delay_ms)
    request.u16(Attribute.MAX_UDP_PAYLOAD, install.max_datagram_payload)
    if install.reset_token is not None:
        request.put(Attribute.RESET_TOKEN, install.reset_token)
    request.u64(Attribute.REKEY_AFTER, install.rekey_after_packets)
    request.u64(Attribute.SEQUENCE, install.cid_sequence)
    request.flag(Attribute.SPLITS, install.splits)
    if install.usual_payload < install.max_datagram_payload:
        request.u16(Attribute.USUAL_PAYLOAD, install.usual_payload)
    if socket_fd is not None:
        request.u32(Attribute.FD, socket_fd)
    return request


def update_request(update: SessionUpdate) -> Request:
    """The attributes of SESSION_UPDATE without the device."""
    request = Request()
    request.put(Attribute.SESSION_ID, update.session_id)
    request.put(Attribute.TX_KEY, update.keys.tx_key)
    request.put(Attribute.RX_KEY, update.keys.rx_key)
    request.put(Attribute.TX_IV, update.keys.tx_iv)
    request.put(Attribute.RX_IV, update.keys.rx_iv)
    _put_next(request, update)
    request.u64(Attribute.KEY_EPOCH, update.key_epoch)
    if update.packet_number:
        request.u64(Attribute.PACKET_NUMBER, update.packet_number)
    return request


def _put_next(request: Request, source: SessionInstall | SessionUpdate) -> None:
    if source.next_keys is not None:
        request.put(Attribute.NEXT_TX_KEY, source.next_keys.tx_key)
        request.put(Attribute.NEXT_TX_IV, source.next_keys.tx_iv)
        request.put(Attribute.NEXT_RX_KEY, source.next_keys.rx_key)
        request.put(Attribute.NEXT_RX_IV, source.next_keys.rx_iv)


def put_underlay(request: Request, underlay: Underlay) -> None:
    """Add local and peer address and port of ``underlay``."""
    request.ip(Attribute.LOCAL_IP, Attribute.LOCAL_IPV6, underlay.local_ip)
    request.port(Attribute.LOCAL_PORT, underlay.local_port)
    request.ip(Attribute.PEER_IP, Attribute.PEER_IPV6, underlay.peer_ip)
    request.port(Attribute.PEER_PORT, underlay.peer_port)
